"""Speed of ingest beside the bare loop that does the same work per sample, and beside other loaders.

    python tests/performance/benchmark_ingest.py [--processes 2] [--windows 10] [--repeats 5] [--slice-size 256]

The work: decode a JPEG of 341×256, the paper's augmentation to 224 px, draw 3 prompts, tokenise 4 texts. Beside the
bare loop stand webdataset + torch DataLoader, SPDL, and the ingest of an earlier version, which runs from the
repository's history. "on the device" leaves the augmentation to the device that trains (`ingest.augment_on`).

Each system gets the same number of worker processes or threads; the process that consumes does nothing with what it
gets. They take turns, and a ratio is the median of the ratios of turns, so that a busy machine slows all. A system's
first batches, while it starts, do not count; what lies ready by then does, so give many windows. Beside it, the time
from nothing to the first slice, at the first step of a long run and at a late one.
"""

import argparse
import dataclasses
import io
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
from PIL import Image

from groupvit.captions import mine_nouns
from groupvit.transforms import AugmentOn
from pipelines.dataset.format import sample_id, write_dataset
from pipelines.experiments.catalogue import gcc_yfcc_30e
from pipelines.experiments.config import DataConfig, ExperimentConfig, IngestConfig, TrainingConfig
from pipelines.ingest.loader import iter_slices, num_prefetched, object_store_bytes, training_slices
from tests.performance import earlier_ingest
from tests.performance.loaders import MakeBatch, spdl_batches, webdataset_batches, write_tars
from tests.performance.machine import machine
from tests.performance.report import report
from tests.support.dataset_folder import write_schema_1

CAPTIONS = (Path(__file__).parent / "captions.txt").read_text().splitlines()
NUM_SAMPLES, NUM_IMAGES, WINDOW_SIZE, SLICE_SIZE = 4096, 256, 1024, 256
EARLIER = f"commit {earlier_ingest.EARLIER[:7]}"
BARS = {
    ("Ray Data", "bare loop"): 0.93,
    ("Ray Data", "webdataset"): 1.0,
    ("Ray Data", "SPDL"): 1.0,
    ("Ray Data", EARLIER): 1.35,
    ("Ray Data, on the device", "bare loop, on the device"): 0.93,
    ("Ray Data, on the device", EARLIER): 2.0,
}
"""What is compared, and the least ratio."""


def make_samples() -> Iterator[dict[str, Any]]:
    """Images with about the detail of photos: noise at all scales, of 30 to 40 kB."""
    rng = np.random.default_rng(0)
    nouns = list(mine_nouns(CAPTIONS))
    images = []
    for _ in range(NUM_IMAGES):
        pixels = np.zeros((256, 341, 3))
        for side in (4, 8, 16, 32, 64, 128):
            noise = Image.fromarray(rng.integers(256, size=(side, side, 3), dtype=np.uint8))
            pixels += np.asarray(noise.resize((341, 256), Image.Resampling.BICUBIC), dtype=np.float64) / 6
        buffer = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(buffer, "JPEG", quality=90)
        images.append(buffer.getvalue())
    for index in range(NUM_SAMPLES):
        image, which = images[index % NUM_IMAGES], index % len(CAPTIONS)
        yield {
            "sample_id": sample_id(image, str(index)),
            "image": image,
            "captions": [CAPTIONS[which]],
            "nouns": [nouns[which]],
            "width": 341,
            "height": 256,
        }


def run_bare(samples: list[dict[str, Any]], batch_size: int, tasks: Any, results: Any) -> None:
    """A process that runs the bare loop over as many batches as it is told, and answers with how long it took."""
    makes: dict[AugmentOn, MakeBatch] = {"cpu": MakeBatch("cpu"), "device": MakeBatch("device")}
    for make in makes.values():
        make.collate([make.sample(sample) for sample in samples])
    for augment_on, num_batches in iter(tasks.get, None):
        make, start = makes[augment_on], time.perf_counter()
        for index in range(num_batches):
            batch = (samples * 2)[index * batch_size % len(samples) :][:batch_size]
            make.collate([make.sample(sample) for sample in batch])
        results.put(time.perf_counter() - start)


def timed(
    batches: Iterator[Any], num_skipped: int, num_counted: int, batch_size: int = SLICE_SIZE
) -> tuple[float, float]:
    """Images per second, and per second of CPU time of this process and its descendants, once it is under way."""
    for _ in range(num_skipped):
        next(batches)
    start, before = time.perf_counter(), cpu_seconds()
    for _ in range(num_counted):
        next(batches)
    num_images = num_counted * batch_size
    rates = num_images / (time.perf_counter() - start), num_images / cpu_seconds_since(before)
    if isinstance(batches, Generator):
        batches.close()
    return rates


def cpu_seconds() -> dict[int, float]:
    """CPU time of this process and of each of its descendants, by their ids."""
    this = psutil.Process()
    seconds = {}
    for process in (this, *this.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        seconds[process.pid] = times.user + times.system
    return seconds


def cpu_seconds_since(before: dict[int, float]) -> float:
    """CPU time since then, without that of processes that have ended: those of the system whose turn it was before."""
    return sum(seconds - before.get(pid, 0.0) for pid, seconds in cpu_seconds().items())


def benchmark(
    num_processes: int, num_windows: int, num_repeats: int, slice_size: int, augment: list[AugmentOn], folder: Path
) -> dict[str, Any]:
    samples = list(make_samples())
    dataset = write_dataset(str(folder / "dataset"), samples)
    tars = write_tars(samples, folder, num_processes)
    earlier_data = folder / "earlier-dataset"
    rows = ({**row, "caption": row["captions"][0], "nouns": row["nouns"][0]} for row in samples)
    write_schema_1(earlier_data, rows, rows_per_group=128)
    spawn = multiprocessing.get_context("spawn")
    tasks, results = spawn.Queue(), spawn.Queue()
    for _ in range(num_processes):
        arguments = (samples[:WINDOW_SIZE], slice_size, tasks, results)
        spawn.Process(target=run_bare, args=arguments, daemon=True).start()
    num_skipped = 2 * num_processes * WINDOW_SIZE // slice_size
    num_counted = num_windows * num_processes * WINDOW_SIZE // slice_size

    def config(augment_on: AugmentOn) -> ExperimentConfig:
        return dataclasses.replace(
            gcc_yfcc_30e(),
            data=DataConfig(sources=(dataset.uri,)),
            ingest=IngestConfig(
                window_size=WINDOW_SIZE, slice_size=slice_size, max_processes=num_processes, augment_on=augment_on
            ),
            training=TrainingConfig(num_steps=200_000),
        )

    def bare(augment_on: AugmentOn) -> tuple[float, float]:
        before = cpu_seconds()
        for _ in range(num_processes):
            tasks.put((augment_on, num_counted // num_processes))
        rates = [num_counted // num_processes * slice_size / results.get() for _ in range(num_processes)]
        return sum(rates), num_counted * slice_size / cpu_seconds_since(before)

    def of(batches: Iterator[Any]) -> tuple[float, float]:
        return timed(batches, num_skipped, num_counted, slice_size)

    def earlier(address: str) -> Iterator[Any]:
        sizes = {"num_processes": num_processes, "window_size": WINDOW_SIZE, "slice_size": slice_size}
        return earlier_ingest.slices(folder / "earlier", address, str(earlier_data), **sizes)

    # Ray makes its workers nice (15): beside other work on the machine, it would lose what the other systems win.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    ray.init(address="local", num_cpus=num_processes, include_dashboard=False, log_to_driver=False)
    systems: dict[str, Callable[[], tuple[float, float]]] = {}
    if "cpu" in augment:
        systems |= {
            "bare loop": lambda: bare("cpu"),
            "webdataset": lambda: of(webdataset_batches(tars, num_processes, slice_size, "cpu")),
            "SPDL": lambda: of(spdl_batches(tars, num_processes, slice_size, "cpu")),
            "Ray Data": lambda: of(ray_slices(config("cpu"), 0)),
        }
    if "device" in augment:
        systems |= {
            "bare loop, on the device": lambda: bare("device"),
            "Ray Data, on the device": lambda: of(ray_slices(config("device"), 0)),
        }
    if earlier_ingest.extract(folder / "earlier"):
        systems[EARLIER] = lambda: of(earlier(ray.get_runtime_context().gcs_address))
    else:
        print(f"{EARLIER} is not in the history of this clone: its row is missing")
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in systems}
    for turn in range(num_repeats):
        for name in list(systems)[:: 1 if turn % 2 else -1]:
            rates[name].append(systems[name]())
            rate, cpu_rate = rates[name][-1]
            print(f"turn {turn + 1}: {name:24} {rate:7.0f} images/s {cpu_rate:7.0f} per CPU second", flush=True)
    first_slice = {step: [] for step in (0, 150_000)}
    for _ in range(num_repeats):
        for step, seconds in first_slice.items():
            start = time.perf_counter()
            next(ray_slices(config(augment[0]), step))
            seconds.append(time.perf_counter() - start)
    ray.shutdown()
    for _ in range(num_processes):
        tasks.put(None)
    return {
        "processes": num_processes,
        "images_per_second": {
            name: round(statistics.median(rate for rate, _ in turns)) for name, turns in rates.items()
        },
        "slice_size": slice_size,
        "ratio": {" / ".join(pair): ratio(rates, pair, 0) for pair in BARS if rates.keys() >= set(pair)},
        "ratio_per_cpu_second": {" / ".join(pair): ratio(rates, pair, 1) for pair in BARS if rates.keys() >= set(pair)},
        "seconds_to_first_slice": {step: round(statistics.median(seconds), 2) for step, seconds in first_slice.items()},
    }


def ratio(rates: dict[str, list[tuple[float, float]]], pair: tuple[str, str], column: int) -> float:
    turns = zip(rates[pair[0]], rates[pair[1]], strict=True)
    return round(statistics.median(ours[column] / theirs[column] for ours, theirs in turns), 3)


def ray_slices(config: ExperimentConfig, first_step: int) -> Iterator[Any]:
    (shard,) = training_slices(config, first_step=first_step).streaming_split(1, equal=False)
    return iter_slices(shard, prefetch_slices=num_prefetched(config, object_store_bytes()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--windows", type=int, default=10, help="windows of 1,024 samples per process and turn")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--slice-size", type=int, default=SLICE_SIZE, help="up to 1,024")
    parser.add_argument("--augment-on", nargs="+", choices=["cpu", "device"], default=["cpu", "device"])
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        sizes = (args.processes, args.windows, args.repeats, args.slice_size)
        result = benchmark(*sizes, args.augment_on, Path(folder))
    for pair, bar in BARS.items():
        if (compared := " / ".join(pair)) in result["ratio"]:
            rate, cpu_rate = result["ratio"][compared], result["ratio_per_cpu_second"][compared]
            met = "met" if rate >= bar else "MISSED"
            print(f"{compared}: {rate:.2f} of the images/s (bar {bar}: {met}), {cpu_rate:.2f} per CPU second")
    for step, seconds in result["seconds_to_first_slice"].items():
        print(f"first slice when starting at step {step:,}: {seconds:.2f} s")
    report("ingest", result["ratio"])
    if args.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
