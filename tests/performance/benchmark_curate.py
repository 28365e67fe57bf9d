"""Speed of curation beside the bare loop that does the same work per sample, and its memory as the input grows.

    python tests/performance/benchmark_curate.py [--processes 2] [--rows 4096] [--repeats 5] [--json]
    python tests/performance/benchmark_curate.py --memory

The work: decode a JPEG of 512×384, shrink it to 256, encode, hash, clean the caption, find its nouns. The bare loop
does it without Ray, reading the same shards, in as many processes as there are actors; the tagger is loaded before
either is timed. They take turns, and the ratio is the median of the ratios of turns, so that a busy machine slows both.
`whole` is all of `groupvit curate`, from its start to the data set: start-up of Ray and of the tagger, finding
duplicates and writing files included.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import simplejpeg
from PIL import Image

from pipelines.curation.config import CurateConfig, Source
from pipelines.curation.curate import curate
from pipelines.curation.pieces import add_nouns, read_report, run_steps
from pipelines.curation.raw import Piece, pieces_of, read_rows, read_shards
from pipelines.curation.run import run_pieces
from pipelines.curation.steps import Sample, sample_steps
from pipelines.demo.memory import PeakMemory
from tests.performance.machine import machine
from tests.performance.report import report

CAPTIONS = (Path(__file__).parent / "captions.txt").read_text().splitlines()
NUM_PICTURES, ROWS_PER_SHARD = 64, 1024
BAR, MEMORY_BAR = 0.70, 1.20


def make_pictures() -> list[np.ndarray]:
    """Pixels with about the detail of photos: noise at all scales."""
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(NUM_PICTURES):
        pixels = np.zeros((384, 512, 3))
        for side in (4, 8, 16, 32, 64, 128, 256):
            noise = Image.fromarray(rng.integers(256, size=(side, side, 3), dtype=np.uint8))
            pixels += np.asarray(noise.resize((512, 384), Image.Resampling.BICUBIC), dtype=np.float64) / 7
        pictures.append(pixels.astype(np.uint8))
    return pictures


def write_raw(folder: Path, num_rows: int) -> str:
    """Shards as img2dataset writes them, of JPEGs of 50 to 80 kB. Pictures come again shifted, which makes others of
    them."""
    folder.mkdir(parents=True)
    pictures, rng = make_pictures(), np.random.default_rng(1)

    def image(number: int) -> bytes:
        shifted = np.roll(pictures[number % NUM_PICTURES], rng.integers(384, size=2), axis=(0, 1))
        return simplejpeg.encode_jpeg(np.ascontiguousarray(shifted), quality=88, colorsubsampling="420")

    for shard, first in enumerate(range(0, num_rows, ROWS_PER_SHARD)):
        numbers = range(first, min(first + ROWS_PER_SHARD, num_rows))
        columns = {
            "url": [f"http://example.org/{number}.jpg" for number in numbers],
            "caption": [f"{CAPTIONS[number % len(CAPTIONS)]}, number {number}" for number in numbers],
            "key": [f"{number:09d}" for number in numbers],
            "status": ["success"] * len(numbers),
            "sha256": [f"{number:064x}" for number in numbers],
            "jpg": [image(number) for number in numbers],
        }
        pq.write_table(pa.table(columns), folder / f"{shard:05d}.parquet", row_group_size=100)
    return str(folder)


def run_bare(config: CurateConfig, tasks: Any, results: Any) -> None:
    """A process that runs the bare loop over the pieces it takes, one by one, and says when each is done."""
    os.environ["OMP_NUM_THREADS"] = "1"
    cv2.setNumThreads(1)
    steps = sample_steps(config, None)
    add_nouns([Sample(raw={}, captions=["a dog"])], config.tagger)
    results.put(None)
    for piece in iter(tasks.get, None):
        seconds = defaultdict(float)
        samples = [Sample(raw=raw) for batch in read_rows(piece) for raw in batch]
        kept = [sample for sample in samples if run_steps(sample, steps, seconds) is None]
        add_nouns(kept, config.tagger)
        results.put(None)


def benchmark(num_processes: int, num_rows: int, num_repeats: int, folder: Path) -> dict[str, Any]:
    raw = write_raw(folder / "raw", num_rows)
    config = CurateConfig(raw=(raw,), out=str(folder / "out"), num_workers=num_processes, rows_per_piece=256)
    pieces = pieces_of(read_shards([Source(name="raw", uri=raw)]), config.rows_per_piece)
    context = multiprocessing.get_context("spawn")
    tasks, results = context.Queue(), context.Queue()
    workers = [context.Process(target=run_bare, args=(config, tasks, results)) for _ in range(num_processes)]
    for worker in workers:
        worker.start()
    for _ in workers:
        results.get()

    def bare() -> float:
        start = time.perf_counter()
        for piece in pieces:
            tasks.put(piece)
        for _ in pieces:
            results.get()
        return num_rows / (time.perf_counter() - start)

    def through_ray() -> float:
        return rate_of(pieces, config, num_processes, folder / "work")

    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    ray.init(address="local", num_cpus=num_processes, include_dashboard=False, log_to_driver=False)
    systems = {"bare loop": bare, "curate": through_ray}
    rates: dict[str, list[float]] = {name: [] for name in systems}
    for turn in range(num_repeats):
        for name in list(systems)[:: 1 if turn % 2 else -1]:
            rates[name].append(systems[name]())
            print(f"turn {turn + 1}: {name:10} {rates[name][-1]:6.0f} rows/s", flush=True)
    seconds: dict[str, float] = defaultdict(float)
    for number in range(len(pieces)):
        for step, part in read_report(str(folder / "work"), number).seconds.items():
            seconds[step] += part
    start = time.perf_counter()
    summary = curate(config)
    whole = num_rows / (time.perf_counter() - start)
    ray.shutdown()
    for _ in workers:
        tasks.put(None)
    turns = list(zip(rates["curate"], rates["bare loop"], strict=True))
    return {
        "processes": num_processes,
        "rows": num_rows,
        "rows_per_second": {name: round(statistics.median(part)) for name, part in rates.items()},
        "ratio": round(statistics.median(ours / theirs for ours, theirs in turns), 3),
        "share": {
            name: round(seconds[name] / sum(seconds.values()), 3)
            for name in sorted(seconds, key=seconds.__getitem__)[::-1]
        },
        "whole": {"rows_per_second": round(whole), "num_samples": summary["num_samples"]},
    }


def rate_of(pieces: Sequence[Piece], config: CurateConfig, num_processes: int, work: Path) -> float:
    """Rows/s of Ray's actors, from the moment when every actor has done a piece: before, it starts and loads the
    tagger.
    """
    shutil.rmtree(work, ignore_errors=True)
    again = [*pieces[:num_processes], *pieces]
    list(run_pieces([_numbered(piece, index) for index, piece in enumerate(again)], config, str(work)))
    ends = sorted((path.stat().st_mtime, int(path.stem)) for path in (work / "index").iterdir())
    done = sum(read_report(str(work), number).num_rows for _, number in ends[num_processes:])
    return done / (ends[-1][0] - ends[num_processes - 1][0])


def _numbered(piece: Piece, number: int) -> Piece:
    return Piece(**{**vars(piece), "number": number})


def memory(folder: Path, sizes: tuple[int, ...] = (2_000, 20_000)) -> dict[str, Any]:
    """Peak memory of `groupvit curate` from start to end, Ray included, each size in a cluster of its own."""
    peaks = {}
    for num_rows in sizes:
        raw = write_raw(folder / f"raw-{num_rows}", num_rows)
        config = CurateConfig(raw=(raw,), out=str(folder / f"out-{num_rows}"))
        with PeakMemory(every_seconds=0.5) as peak:
            summary = curate(config)
        peaks[num_rows] = peak.peak_mb
        print(f"{num_rows:,} rows, {summary['num_samples']:,} kept: peak {peak.peak_mb:,} MB", flush=True)
    small, large = (peaks[size] for size in sizes)
    return {"peak_mb": peaks, "growth": round(large / small, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", action="store_true", help="memory at 2,000 and at 20,000 rows instead of speed")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        if args.memory:
            result = memory(Path(folder))
            report("curate", {"memory of 10 times the rows": result["growth"]})
            met = "met" if result["growth"] <= MEMORY_BAR else "MISSED"
            print(f"10 times the rows take {result['growth']:.2f} times the memory (bar {MEMORY_BAR}: {met})")
        else:
            result = benchmark(args.processes, args.rows, args.repeats, Path(folder))
            report("curate", {"curate / bare loop": result["ratio"]})
            met = "met" if result["ratio"] >= BAR else "MISSED"
            print(f"curate / bare loop: {result['ratio']:.2f} of the rows/s (bar {BAR}: {met})")
            print("share of each step: " + "  ".join(f"{name} {part:.0%}" for name, part in result["share"].items()))
            print(f"whole, with start-up, duplicates and files: {result['whole']['rows_per_second']:.0f} rows/s")
    if args.json:
        print(json.dumps(result))


if __name__ == "__main__":
    sys.exit(main())
