"""Speed of ingest beside the bare loop that does the same work per sample, and beside webdataset + torch DataLoader.

    python tests/performance/benchmark_ingest.py [--processes 2] [--windows 10] [--repeats 5] [--json]

The work: decode a JPEG of 341×256, the paper's augmentation to 224 px, draw 3 prompts, tokenise 4 texts. Each system
gets the same number of worker processes; the process that consumes does nothing with what it gets. They take turns, and
a ratio is the median of the ratios of turns, so that a busy machine slows all. A system's first batches, while it
starts, do not count; what lies ready by then does, so give many windows. Beside it, the time from nothing to the first
slice, at the first step of a long run and at a late one.
"""

import argparse
import dataclasses
import io
import itertools
import json
import multiprocessing
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
import torch
import webdataset
from PIL import Image

from groupvit.captions import draw_prompts, mine_nouns
from groupvit.tokenizer import Tokenizer
from groupvit.transforms import TrainTransform
from pipelines.dataset.format import sample_id, write_dataset
from pipelines.experiments.catalogue import gcc_yfcc_30e
from pipelines.experiments.config import DataConfig, IngestConfig, TrainingConfig
from pipelines.ingest.loader import iter_slices, training_slices
from tests.performance.machine import machine
from tests.performance.report import report

CAPTIONS = (Path(__file__).parent / "captions.txt").read_text().splitlines()
NUM_SAMPLES, NUM_IMAGES, WINDOW_SIZE, SLICE_SIZE, NUM_PROMPTS = 4096, 256, 1024, 256, 3
BARS = {"bare loop": 0.85, "webdataset": 1.0}


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


class MakeBatch:
    """Samples → a batch: the work that all systems do. One process loads the tokeniser once."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        self.transform, self.tokenize, self.rng = TrainTransform(image_size=224), Tokenizer(), np.random.default_rng(0)

    def sample(self, sample: dict[str, Any]) -> tuple[np.ndarray, list[str]]:
        pixels = self.transform(sample["image"], int(self.rng.integers(2**63))).image
        [caption], [nouns] = sample["captions"], sample["nouns"]
        return pixels, [caption, *draw_prompts(nouns, caption, NUM_PROMPTS, self.rng)[0]]

    def collate(self, samples: list[tuple[np.ndarray, list[str]]]) -> dict[str, np.ndarray]:
        images, texts = zip(*samples, strict=True)
        return {"image": np.stack(images), "token_ids": self.tokenize(list(itertools.chain.from_iterable(texts)))}


def run_bare(samples: list[dict[str, Any]], tasks: Any, results: Any) -> None:
    """A process that runs the bare loop over as many batches as it is told, and answers with how long it took."""
    make = MakeBatch()
    make.collate([make.sample(sample) for sample in samples])
    for num_batches in iter(tasks.get, None):
        start = time.perf_counter()
        for index in range(num_batches):
            batch = (samples * 2)[index * SLICE_SIZE % len(samples) :][:SLICE_SIZE]
            make.collate([make.sample(sample) for sample in batch])
        results.put(time.perf_counter() - start)


class WebdatasetSamples:
    """Reads a tar's members as samples; the state of a loader's process, made there at first use."""

    make: MakeBatch | None = None

    def sample(self, entry: dict[str, Any]) -> tuple[np.ndarray, list[str]]:
        self.make = self.make or MakeBatch()
        return self.make.sample({"image": entry["jpg"], **json.loads(entry["json"])})

    def collate(self, samples: list[tuple[np.ndarray, list[str]]]) -> dict[str, np.ndarray]:
        assert self.make is not None
        return self.make.collate(samples)


def webdataset_batches(tars: list[str], num_processes: int) -> Iterator[Any]:
    work = WebdatasetSamples()
    pipeline = (
        webdataset.WebDataset(tars, resampled=True, shardshuffle=False)
        .map(work.sample)
        .batched(SLICE_SIZE, collation_fn=work.collate)
    )
    return iter(torch.utils.data.DataLoader(pipeline, batch_size=None, num_workers=num_processes))


def timed(batches: Iterator[Any], num_skipped: int, num_counted: int) -> tuple[float, float]:
    """Images per second, and per second of CPU time of this process and its descendants, once it is under way."""
    for _ in range(num_skipped):
        next(batches)
    start, busy = time.perf_counter(), cpu_seconds()
    for _ in range(num_counted):
        next(batches)
    num_images = num_counted * SLICE_SIZE
    return num_images / (time.perf_counter() - start), num_images / (cpu_seconds() - busy)


def cpu_seconds() -> float:
    this = psutil.Process()
    total = 0.0
    for process in (this, *this.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def benchmark(num_processes: int, num_windows: int, num_repeats: int, folder: Path) -> dict[str, Any]:
    samples = list(make_samples())
    dataset = write_dataset(str(folder / "dataset"), samples)
    tars = write_tars(samples, folder, num_processes)
    config = dataclasses.replace(
        gcc_yfcc_30e(),
        data=DataConfig(sources=(dataset.uri,)),
        ingest=IngestConfig(window_size=WINDOW_SIZE, slice_size=SLICE_SIZE, max_processes=num_processes),
        training=TrainingConfig(num_steps=200_000),
    )
    spawn = multiprocessing.get_context("spawn")
    tasks, results = spawn.Queue(), spawn.Queue()
    for _ in range(num_processes):
        spawn.Process(target=run_bare, args=(samples[:WINDOW_SIZE], tasks, results), daemon=True).start()
    num_skipped = 2 * num_processes * WINDOW_SIZE // SLICE_SIZE
    num_counted = num_windows * num_processes * WINDOW_SIZE // SLICE_SIZE

    def bare() -> tuple[float, float]:
        busy = cpu_seconds()
        for _ in range(num_processes):
            tasks.put(num_counted // num_processes)
        rates = [num_counted // num_processes * SLICE_SIZE / results.get() for _ in range(num_processes)]
        return sum(rates), num_counted * SLICE_SIZE / (cpu_seconds() - busy)

    def through_ray() -> tuple[float, float]:
        return timed(ray_slices(config, 0), num_skipped, num_counted)

    def through_webdataset() -> tuple[float, float]:
        return timed(webdataset_batches(tars, num_processes), num_skipped, num_counted)

    # Ray makes its workers nice (15): beside other work on the machine, it would lose what the other systems win.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    ray.init(address="local", num_cpus=num_processes, include_dashboard=False, log_to_driver=False)
    systems: dict[str, Callable[[], tuple[float, float]]] = {
        "bare loop": bare,
        "webdataset": through_webdataset,
        "Ray Data": through_ray,
    }
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in systems}
    for turn in range(num_repeats):
        for name in list(systems)[:: 1 if turn % 2 else -1]:
            rates[name].append(systems[name]())
            rate, cpu_rate = rates[name][-1]
            print(f"turn {turn + 1}: {name:12} {rate:7.0f} images/s {cpu_rate:7.0f} per CPU second", flush=True)
    first_slice = {step: [] for step in (0, 150_000)}
    for _ in range(num_repeats):
        for step, seconds in first_slice.items():
            start = time.perf_counter()
            next(ray_slices(config, step))
            seconds.append(time.perf_counter() - start)
    ray.shutdown()
    for _ in range(num_processes):
        tasks.put(None)
    return {
        "processes": num_processes,
        "images_per_second": {
            name: round(statistics.median(rate for rate, _ in turns)) for name, turns in rates.items()
        },
        "ratio": {name: ratio(rates, name, 0) for name in BARS},
        "ratio_per_cpu_second": {name: ratio(rates, name, 1) for name in BARS},
        "seconds_to_first_slice": {step: round(statistics.median(seconds), 2) for step, seconds in first_slice.items()},
    }


def ratio(rates: dict[str, list[tuple[float, float]]], name: str, column: int) -> float:
    turns = zip(rates["Ray Data"], rates[name], strict=True)
    return round(statistics.median(ours[column] / theirs[column] for ours, theirs in turns), 3)


def ray_slices(config: Any, first_step: int) -> Iterator[Any]:
    (shard,) = training_slices(config, first_step=first_step).streaming_split(1, equal=False)
    return iter_slices(shard)


def write_tars(samples: list[dict[str, Any]], folder: Path, num_tars: int) -> list[str]:
    paths = [str(folder / f"{index}.tar") for index in range(num_tars)]
    for index, path in enumerate(paths):
        with tarfile.open(path, "w") as tar:
            for sample in samples[index::num_tars]:
                text = json.dumps({"captions": sample["captions"], "nouns": sample["nouns"]}).encode()
                for extension, content in (("jpg", sample["image"]), ("json", text)):
                    member = tarfile.TarInfo(f"{sample['sample_id']}.{extension}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--windows", type=int, default=10, help="windows of 1,024 samples per process and turn")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        result = benchmark(args.processes, args.windows, args.repeats, Path(folder))
    for name, bar in BARS.items():
        rate, cpu_rate = result["ratio"][name], result["ratio_per_cpu_second"][name]
        met = "met" if rate >= bar else "MISSED"
        print(f"Ray Data / {name}: {rate:.2f} of the images/s (bar {bar}: {met}), {cpu_rate:.2f} per CPU second")
    for step, seconds in result["seconds_to_first_slice"].items():
        print(f"first slice when starting at step {step:,}: {seconds:.2f} s")
    report("ingest", {f"Ray Data / {name}": rate for name, rate in result["ratio"].items()})
    if args.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
