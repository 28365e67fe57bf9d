"""Speed at which Ray delivers slices to workers: one data set, one SplitCoordinator, the object store.

    python tests/performance/benchmark_delivery.py [--consumers 1 2 4 8] [--repeats 3] [--two-nodes] [--json]

The data set is that of training (`pipelines.ingest.loader`), but its processes hand over slices that lie ready in their
memory, and its consumers take slices and do not touch them. What is left is Ray: the copy into the object store, the
scheduling, and the hand-over. Sizes: 256 and 1,024 images of 224 px, and almost nothing, which shows how many slices
Ray can schedule. Consumers take turns; a figure is the median over turns.

Beside the rate stands the CPU time per slice, by process. It says more than the rate on a machine with few cores: what
the coordinator needs for a slice bounds the slices of a run, however many machines there are.

`--two-nodes` starts a second node on this machine. One makes slices, the other takes them, so that all of them go
from one object store to the other over the loopback interface.
"""

import argparse
import dataclasses
import itertools
import json
import os
import statistics
import tempfile
import threading
import time
from typing import Any
from unittest import mock

import numpy as np
import psutil
import ray
from ray.cluster_utils import Cluster

from pipelines.dataset.format import sample_id, write_dataset
from pipelines.experiments.catalogue import gcc_yfcc_30e
from pipelines.experiments.config import DataConfig, ExperimentConfig, IngestConfig, TrainingConfig
from pipelines.ingest import loader
from pipelines.ingest.plan import IngestPlan, Slice
from tests.performance.machine import machine
from tests.performance.report import report

NUM_PROMPTS, NUM_TOKENS, NUM_SAMPLES = 3, 77, 1024
TINY_SIDE = 16
SIZES = {"tiny": (256, TINY_SIDE), "256": (256, 224), "1,024": (1024, 224)}
"""Images in a slice, and their side in pixels. A tiny one is made like one of 256 images, but holds 1."""
PROCESSES = {
    "coordinator": ("SplitCoordinator",),
    "readers": ("MapWorker", "_split_by_window", "_SliceLoader"),
    "consumers": ("Consumer",),
    "object store": ("raylet/raylet",),
}
"""Whose CPU time is counted, and what their command lines contain. Everything else is 'other'."""


def make_slice(num_images: int, side: int) -> Slice:
    """A slice as training gets it; only the sizes are true."""
    if side == TINY_SIDE:
        num_images = 1
    return {
        "image": np.zeros((num_images, 3, side, side), dtype=np.uint8),
        "token_ids": np.zeros((num_images, 1 + NUM_PROMPTS, NUM_TOKENS), dtype=np.int32),
        "prompt_keys": np.zeros((num_images, NUM_PROMPTS), dtype=np.int64),
        "erase_box": np.zeros((num_images, 4), dtype=np.int16),
        "noise_seed": np.zeros(num_images, dtype=np.int64),
        "sample_id": np.array([f"{index:064x}" for index in range(num_images)], dtype=object),
        "position": np.zeros(num_images, dtype=np.int64),
        "epoch": np.zeros(num_images, dtype=np.int32),
        "source": np.zeros(num_images, dtype=np.int8),
        "substituted": np.zeros(num_images, dtype=bool),
    }


class ReadySlices(loader._SliceLoader):  # pyright: ignore[reportPrivateUsage]
    """The process that makes slices, with one slice that it hands over again and again."""

    def __init__(self, plan: IngestPlan) -> None:  # not the base class's, which imports torch
        ready = make_slice(plan.slice_size, plan.image_size)
        self._load_slices = lambda plan, first, end: [ready] * (end - first)
        self._plan, self._cpu = plan, threading.Lock()


@ray.remote(num_cpus=0)
class Consumer:
    """A worker that takes slices and does nothing with them."""

    def __init__(self, shard: ray.data.DataIterator, prefetch_slices: int) -> None:
        self._slices = loader.iter_slices(shard, prefetch_slices=prefetch_slices)

    def take(self, count: int) -> None:
        for _ in range(count):
            next(self._slices)


def cpu_seconds() -> dict[int, tuple[str, float]]:
    """Kind and CPU time so far of each of Ray's processes on this machine, by process id."""
    seconds = {}
    for process in psutil.Process().children(recursive=True):
        try:
            command, times = " ".join(process.cmdline()), process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        kind = next((kind for kind, words in PROCESSES.items() if any(word in command for word in words)), "other")
        seconds[process.pid] = kind, times.user + times.system
    return seconds


def spent(before: dict[int, tuple[str, float]], after: dict[int, tuple[str, float]]) -> dict[str, float]:
    """CPU seconds by kind of process. A process that started in between does not count: it was mostly starting."""
    total = dict.fromkeys([*PROCESSES, "other"], 0.0)
    for pid, (kind, seconds) in after.items():
        if pid in before:
            total[kind] += seconds - before[pid][1]
    return total


def deliver(config: ExperimentConfig, num_consumers: int, *, prefetch_slices: int, seconds: float) -> dict[str, Any]:
    """Slices per second to so many consumers, and the CPU time of a slice in ms, by kind of process."""
    with mock.patch.object(loader, "_SliceLoader", ReadySlices):
        dataset = loader.training_slices(config, first_step=0, stay_open=True)
    shards = dataset.streaming_split(num_consumers, equal=False)
    options = {"resources": {"consumer": 0.01}} if "consumer" in ray.cluster_resources() else {}
    consumers = [Consumer.options(**options).remote(shard, prefetch_slices) for shard in shards]

    def take(count: int) -> float:
        start = time.perf_counter()
        ray.get([consumer.take.remote(count) for consumer in consumers])
        return time.perf_counter() - start

    start = time.perf_counter()
    while time.perf_counter() - start < 2 * seconds:  # while processes start
        duration = take(8)
    count = max(8, round(seconds / duration * 8))
    before = cpu_seconds()
    elapsed = take(count)
    num_slices = count * num_consumers
    busy = {kind: 1000 * total / num_slices for kind, total in spent(before, cpu_seconds()).items()}
    return {"slices_per_second": num_slices / elapsed, "cpu_ms": busy}


def start_ray(two_nodes: bool, num_readers: int, store_bytes: int) -> Cluster | None:
    if not two_nodes:
        ray.init(
            address="local",
            num_cpus=num_readers,
            object_store_memory=store_bytes,
            include_dashboard=False,
            log_to_driver=False,
        )
        return None
    # The node that the driver joins takes slices, as the one with GPUs does; it has no CPU for readers.
    cluster = Cluster()
    cluster.add_node(num_cpus=0, resources={"consumer": 1}, object_store_memory=store_bytes)
    cluster.add_node(num_cpus=num_readers, object_store_memory=store_bytes)
    ray.init(address=cluster.address, log_to_driver=False)
    return cluster


def measure(size: str, num_consumers: int, args: argparse.Namespace, dataset: str) -> dict[str, Any]:
    num_images, side = SIZES[size]
    paper = gcc_yfcc_30e()
    config = dataclasses.replace(
        paper,
        data=DataConfig(sources=(dataset,)),
        model=dataclasses.replace(paper.model, image=dataclasses.replace(paper.model.image, image_size=side)),
        ingest=IngestConfig(window_size=args.window_size, slice_size=num_images, max_processes=args.readers),
        training=TrainingConfig(num_steps=10**9),
    )
    cluster = start_ray(args.two_nodes, args.readers, args.store_gigabytes * 10**9)
    try:
        result = deliver(config, num_consumers, prefetch_slices=args.prefetch_slices, seconds=args.seconds)
    finally:
        ray.shutdown()
        if cluster is not None:
            cluster.shutdown()
    num_bytes = sum(column.nbytes for column in make_slice(num_images, side).values())
    rate = result["slices_per_second"]
    return result | {
        "megabytes": num_bytes / 1e6,
        "images_per_second": rate * num_images,
        "gigabytes_per_second": rate * num_bytes / 1e9,
    }


def enough_memory(size: str, num_consumers: int, args: argparse.Namespace) -> bool:
    """Whether Ray Data makes enough slices for every consumer to get its first.

    A consumer waits until it has its prefetched slices and one more. Ray Data makes no more slices once those in use
    fill about a third of the object store. If the consumers need more than that, all wait forever.
    """
    num_bytes = sum(column.nbytes for column in make_slice(*SIZES[size]).values())
    return 3 * num_consumers * (args.prefetch_slices + 1) * num_bytes <= args.store_gigabytes * 10**9


def line(size: str, num_consumers: int, result: dict[str, Any]) -> str:
    cpu = ", ".join(f"{kind} {milliseconds:.1f}" for kind, milliseconds in result["cpu_ms"].items())
    return (
        f"slices of {size:>5} ({result['megabytes']:.3g} MB), {num_consumers} consumers: "
        f"{result['slices_per_second']:6.1f} slices/s, {result['images_per_second']:8,.0f} images/s, "
        f"{result['gigabytes_per_second']:.2f} GB/s; CPU ms a slice: {cpu}"
    )


def median(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of each figure over turns."""
    cpu = {kind: statistics.median(result["cpu_ms"][kind] for result in results) for kind in results[0]["cpu_ms"]}
    figures = {name: statistics.median(result[name] for result in results) for name in results[0] if name != "cpu_ms"}
    return figures | {"cpu_ms": cpu}


def ratios(turns: dict[tuple[str, int], list[dict[str, Any]]]) -> dict[str, float]:
    """The most consumers against the fewest, and large slices against small ones, in images per second."""
    counts = sorted({count for _, count in turns})
    few, many = counts[0], counts[-1]
    pairs = {f"slices of {size}: {many} consumers / {few}": ((size, many), (size, few)) for size in SIZES}
    pairs[f"{many} consumers: slices of 1,024 / of 256, images/s"] = ("1,024", many), ("256", many)
    return {
        compared: round(
            statistics.median(
                ours["images_per_second"] / theirs["images_per_second"]
                for ours, theirs in zip(turns[one], turns[other], strict=True)
            ),
            3,
        )
        for compared, (one, other) in pairs.items()
        if one in turns and other in turns and one != other
    }


def write_smallest_dataset(uri: str) -> str:
    """A data set whose samples nobody reads."""
    rows = [{"sample_id": sample_id(b"", str(index)), "image": b"", "captions": ["a"]} for index in range(NUM_SAMPLES)]
    return write_dataset(uri, [row | {"nouns": [["a"]], "width": 1, "height": 1} for row in rows]).uri


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--consumers", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--readers", type=int, default=2, help="processes that hand over slices")
    parser.add_argument(
        "--window-size", type=int, default=1024, help="samples that a process makes into slices at once"
    )
    parser.add_argument("--prefetch-slices", type=int, default=2, help="slices held ready for each consumer")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--store-gigabytes", type=int, default=6, help="Ray's object store, of each node")
    parser.add_argument("--two-nodes", action="store_true", help="slices go from one object store to another")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    print(machine())
    # Ray makes its workers nice (15): beside other work on the machine, it would be slower than alone.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    turns: dict[tuple[str, int], list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        dataset = write_smallest_dataset(folder)
        for _ in range(args.repeats):
            for size, num_consumers in itertools.product(args.sizes, args.consumers):
                if not enough_memory(size, num_consumers, args):
                    print(f"slices of {size:>5}, {num_consumers} consumers: skipped, --store-gigabytes is too small")
                    continue
                result = measure(size, num_consumers, args, dataset)
                turns.setdefault((size, num_consumers), []).append(result)
                print(line(size, num_consumers, result), flush=True)
    print(f"medians of {args.repeats} turns, {args.readers} readers:")
    medians = {case: median(results) for case, results in turns.items()}
    for (size, num_consumers), result in medians.items():
        print(line(size, num_consumers, result))
    report("delivery", ratios(turns))
    if args.json:
        print(json.dumps([{"size": size, "consumers": count, **medians[size, count]} for size, count in medians]))


if __name__ == "__main__":
    main()
