"""What Ray Tune costs: tiny trials, 8 at a time in a sweep, against the same runs back to back without Tune.

    PYTHONPATH=. python tests/performance/benchmark_sweep.py --repeats 3

Both sides train, evaluate and track the same runs, in turns, each in a process and on a Ray of its own. The time is
that of the whole command, from before Ray starts; Ray is told of as many CPUs as 8 trials ask for, whatever the machine
has.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pipelines.demo.memory import PeakMemory
from tests.performance.machine import machine
from tests.performance.report import report

BAR = 0.85
"""Least throughput of the sweep, over that of the runs one after the other."""


def flags_of(data: Path, runs: Path, num_trials: int, num_steps: int) -> list[str]:
    return [
        *("debug", "--base", "debug", "--data", str(data / "train"), "--evaluation.root", str(data / "scenes")),
        *("--evaluation.num-pictures", "0", "--evaluation.registered-model", "None"),
        *("--training.runs-folder", str(runs), "--num-steps", str(num_steps), "--rung-every-n-steps", str(num_steps)),
        *("--num-seeds", str(num_trials // 4), "--max-concurrent", str(num_trials)),
    ]


def run_side(side: str, flags: list[str]) -> None:
    """In a process of its own: prints seconds and megabytes."""
    from pipelines.cli.requests import sweep_request
    from pipelines.cluster.session import ray_cluster
    from pipelines.sweeps.plan import plan_sweep
    from pipelines.sweeps.sweep import sweep
    from pipelines.training.pretrain import pretrain

    planned = plan_sweep(*sweep_request(flags))
    start = time.perf_counter()
    with PeakMemory() as memory:
        if side == "sweep":
            counts = sweep(planned)["counts"]
            assert counts["finished"] == planned.num_trials, counts
        else:
            with ray_cluster(least_cpus=int(planned.resources_per_trial["CPU"])):
                for spec in planned.grid():
                    assert pretrain(planned.experiment(spec))["evaluations"]["scores"]
    print(json.dumps({"seconds": time.perf_counter() - start, "peak_mb": memory.peak_mb}))


def make_data(folder: Path) -> None:
    from tests.support.dataset_folder import make_dataset
    from tests.support.scenes_folder import write_scenes

    make_dataset(folder / "train", 512, rows_per_group=64)
    write_scenes(folder / "scenes", 16)


def measure(data: Path, side: str, num_trials: int, num_steps: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as runs:
        flags = flags_of(data, Path(runs), num_trials, num_steps)
        command = [sys.executable, __file__, "--side", side, "--flags", json.dumps(flags)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
        if done.returncode:
            raise RuntimeError(done.stderr[-3000:])
        return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=8, help="a multiple of 4")
    parser.add_argument("--num-steps", type=int, default=200, help="of a trial, 32 images each")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    parser.add_argument("--side", choices=("sweep", "alone"), help=argparse.SUPPRESS)
    parser.add_argument("--flags", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        run_side(arguments.side, json.loads(arguments.flags))
        return
    print(machine())
    images = arguments.trials * arguments.num_steps * 32
    ratios: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        make_data(Path(folder))
        for turn in range(arguments.repeats):
            seconds = {}
            for side in ("sweep", "alone") if turn % 2 else ("alone", "sweep"):
                found = measure(Path(folder), side, arguments.trials, arguments.num_steps)
                seconds[side] = found["seconds"]
                print(
                    f"{side:6} {seconds[side]:6.1f} s  {images / seconds[side]:6.1f} images/s  "
                    f"{60 * arguments.trials / seconds[side]:.2f} trials/min  {found['peak_mb']:,} MB",
                    flush=True,
                )
            ratios.append(seconds["alone"] / seconds["sweep"])
            print(f"turn {turn + 1}: ratio {ratios[-1]:.2f}", flush=True)
    ratio = statistics.median(ratios)
    print(f"sweep over alone, median of {len(ratios)}: {ratio:.2f} (bar {BAR})")
    report("sweep", {"sweep / runs one by one": ratio})
    if arguments.json:
        print(json.dumps({"ratio": ratio, "ratios": ratios, "bar": BAR}))


if __name__ == "__main__":
    main()
