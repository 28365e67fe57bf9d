"""Speed of `groupvit curate` on each format of raw shards beside img2dataset's parquet, and its memory as they grow.

    python tests/performance/benchmark_formats.py [--processes 2] [--rows 4096] [--repeats 5] [--json]
    python tests/performance/benchmark_formats.py --memory [--sizes 2000 20000]

The same JPEGs of 512×384 lie in every format, in shards of 256. The formats take turns, and a ratio is the median of
those of turns, so that a busy machine slows all. What is timed: the actors of Ray from the moment when each has done a
piece, as in benchmark_curate.py.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import ray

from pipelines.curation.config import CurateConfig, Source
from pipelines.curation.curate import curate
from pipelines.curation.raw import pieces_of, read_shards
from pipelines.demo.memory import PeakMemory
from tests.performance.benchmark_curate import MEMORY_BAR, rate_of, write_raw
from tests.performance.machine import machine
from tests.performance.report import report
from tests.support.raw_formats import write_folder, write_hugging_face, write_img2dataset, write_tars

ROWS_PER_SHARD = 256
BAR = 0.9
Rows = Sequence[Mapping[str, Any]]

BASE = "img2dataset's parquet"
WRITERS: Mapping[str, Callable[[Path, Rows], Path]] = {
    BASE: lambda folder, rows: write_img2dataset(folder, rows, ROWS_PER_SHARD, "parquet"),
    "webdataset tars": lambda folder, rows: write_tars(folder, rows, ROWS_PER_SHARD),
    "Hugging Face parquet": lambda folder, rows: write_hugging_face(folder, rows, ROWS_PER_SHARD),
    "folder of images": lambda folder, rows: write_folder(folder, rows, "csv"),
}


def make(folder: Path, num_rows: int) -> dict[str, Path]:
    """The same rows in every format."""
    shards = sorted(Path(write_raw(folder / "drawn", num_rows)).iterdir())
    rows = [{"error_message": None, **row} for shard in shards for row in pq.read_table(shard).to_pylist()]
    return {name: write(folder / name.replace(" ", "-"), rows) for name, write in WRITERS.items()}


def benchmark(num_processes: int, num_rows: int, num_repeats: int, folder: Path) -> dict[str, Any]:
    raw = make(folder, num_rows)
    config = CurateConfig(raw=("x",), out="y", num_workers=num_processes, rows_per_piece=ROWS_PER_SHARD)
    pieces = {
        name: pieces_of(read_shards([Source(name="x", uri=str(place))]), ROWS_PER_SHARD) for name, place in raw.items()
    }
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    ray.init(address="local", num_cpus=num_processes, include_dashboard=False, log_to_driver=False)
    rates: dict[str, list[float]] = {name: [] for name in raw}
    for turn in range(num_repeats):
        for name in list(raw)[:: 1 if turn % 2 else -1]:
            rates[name].append(rate_of(pieces[name], config, num_processes, folder / "work"))
            print(f"turn {turn + 1}: {name:22} {rates[name][-1]:6.0f} rows/s", flush=True)
    ray.shutdown()
    ratios = {
        name: statistics.median(ours / base for ours, base in zip(rates[name], rates[BASE], strict=True))
        for name in raw
        if name != BASE
    }
    return {
        "processes": num_processes,
        "rows": num_rows,
        "rows_per_second": {name: round(statistics.median(part)) for name, part in rates.items()},
        "ratios": {name: round(ratio, 3) for name, ratio in ratios.items()},
    }


def memory(folder: Path, sizes: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Peak memory of `groupvit curate` from start to end, Ray included, each in a cluster of its own."""
    peaks: dict[str, dict[int, int]] = {name: {} for name in WRITERS if name != BASE}
    for num_rows in sizes:
        raw = make(folder / str(num_rows), num_rows)
        for name, of_format in peaks.items():
            config = CurateConfig(raw=(f"x={raw[name]}",), out=str(folder / f"out-{num_rows}-{raw[name].name}"))
            with PeakMemory(every_seconds=0.5) as peak:
                summary = curate(config)
            of_format[num_rows] = peak.peak_mb
            print(f"{name}: {num_rows:,} rows, {summary['num_samples']:,} kept: peak {peak.peak_mb:,} MB", flush=True)
    return {
        name: {"peak_mb": of_format, "growth": round(of_format[sizes[-1]] / of_format[sizes[0]], 3)}
        for name, of_format in peaks.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", action="store_true", help="memory at two sizes instead of speed")
    parser.add_argument("--sizes", type=int, nargs=2, default=(2_000, 20_000), help="rows for --memory")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        if args.memory:
            result = memory(Path(folder), args.sizes)
            times = f"{args.sizes[1] / args.sizes[0]:g} times the rows"
            report("formats", {f"{name}: memory of {times}": found["growth"] for name, found in result.items()})
            for name, found in result.items():
                met = "met" if found["growth"] <= MEMORY_BAR else "MISSED"
                print(f"{name}: {times} take {found['growth']:.2f} times the memory (bar {MEMORY_BAR}: {met})")
        else:
            result = benchmark(args.processes, args.rows, args.repeats, Path(folder))
            report("formats", {f"curate: {name} / {BASE}": ratio for name, ratio in result["ratios"].items()})
            for name, ratio in result["ratios"].items():
                met = "met" if ratio >= BAR else "MISSED"
                print(f"{name} / {BASE}: {ratio:.2f} of the rows/s (bar {BAR}: {met})")
    if args.json:
        print(json.dumps(result))


if __name__ == "__main__":
    sys.exit(main())
