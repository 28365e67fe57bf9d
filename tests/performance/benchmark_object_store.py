"""Speed of ingest from an object store beside ingest from local disk.

    PYTHONPATH=. python tests/performance/benchmark_object_store.py [--processes 2] [--windows 6] [--repeats 5] [--json]

A SeaweedFS server on this machine takes part of its cores, which a store elsewhere would not. The data and the work are
those of benchmark_ingest; the two take turns, and the ratio is the median of the ratios of turns.
"""

import argparse
import dataclasses
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import ray

from pipelines.dataset.format import write_dataset
from pipelines.experiments.catalogue import gcc_yfcc_30e
from pipelines.experiments.config import DataConfig, ExperimentConfig, IngestConfig, TrainingConfig
from tests.performance.benchmark_ingest import SLICE_SIZE, WINDOW_SIZE, make_samples, ray_slices, timed
from tests.performance.machine import machine
from tests.performance.report import report
from tests.support.object_store import ObjectStore

BAR = 0.8


def benchmark(num_processes: int, num_windows: int, num_repeats: int, folder: Path) -> dict[str, Any]:
    samples = list(make_samples())
    configs: dict[str, ExperimentConfig] = {}
    for name, uri in {"local disk": str(folder / "dataset"), "object store": "s3://bucket/dataset"}.items():
        configs[name] = dataclasses.replace(
            gcc_yfcc_30e(),
            data=DataConfig(sources=(write_dataset(uri, samples).uri,)),
            ingest=IngestConfig(window_size=WINDOW_SIZE, slice_size=SLICE_SIZE),
            training=TrainingConfig(num_steps=200_000),
        )
    slices_per_round = num_processes * WINDOW_SIZE // SLICE_SIZE
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    ray.init(address="local", num_cpus=num_processes, include_dashboard=False, log_to_driver=False)
    rates: dict[str, list[float]] = {name: [] for name in configs}
    for turn in range(num_repeats):
        for name in list(configs)[:: 1 if turn % 2 else -1]:
            rate, _ = timed(ray_slices(configs[name], 0), 2 * slices_per_round, num_windows * slices_per_round)
            rates[name].append(rate)
            print(f"turn {turn + 1}: {name:12} {rate:7.0f} images/s", flush=True)
    ray.shutdown()
    turns = zip(rates["object store"], rates["local disk"], strict=True)
    return {
        "images_per_second": {name: round(statistics.median(turns)) for name, turns in rates.items()},
        "ratio": round(statistics.median(remote / local for remote, local in turns), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--windows", type=int, default=6, help="windows of 1,024 samples per process and turn")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as folder, ObjectStore(Path(folder)) as store:
        os.environ.update(store.environment)
        store.create_bucket("bucket")
        result = benchmark(args.processes, args.windows, args.repeats, Path(folder))
    met = "met" if result["ratio"] >= BAR else "MISSED"
    print(f"object store / local disk: {result['ratio']:.2f} of the images/s (bar {BAR}: {met})")
    report("object store", {"object store / local disk": result["ratio"]})
    if args.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
