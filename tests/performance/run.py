"""Every benchmark with short settings, one after the other, and one table of their ratios: `make bench`."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.console.tables import aligned, number
from tests.performance.report import ROWS

ROOT = Path(__file__).parents[2]
FLAGS: Mapping[str, Sequence[str]] = {
    "benchmark_training_step": ("--batch-size", "8", "--repeats", "3"),
    "benchmark_exact_sums": ("--repeats", "4"),
    "benchmark_evaluate": ("voc21", "ade20k", "--images", "1", "--repeats", "3"),
    "benchmark_ingest": ("--windows", "4", "--repeats", "3"),
    "benchmark_delivery": ("--sizes", "256", "1,024", "--consumers", "1", "4", "--seconds", "2", "--repeats", "1"),
    "benchmark_object_store": ("--windows", "4", "--repeats", "3"),
    "benchmark_checkpoints": ("--steps", "20", "--repeats", "1"),
    "benchmark_curate": ("--rows", "1024", "--repeats", "3"),
    "benchmark_formats": ("--rows", "1024", "--repeats", "3"),
    "benchmark_sweep": ("--num-steps", "50", "--repeats", "1"),
}


def run(flags: Mapping[str, Sequence[str]]) -> tuple[list[dict[str, Any]], list[str]]:
    """Run these benchmarks; return their rows, and the names of those that failed."""
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows"
        rows.touch()
        for name, arguments in flags.items():
            print(f"\n{name} {' '.join(arguments)}", flush=True)
            command = [sys.executable, "-m", f"tests.performance.{name}", *arguments]
            environment = os.environ | {ROWS: str(rows), "PYTHONPATH": str(ROOT)}
            if subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode:
                failed.append(name)
        return [json.loads(line) for line in rows.read_text().splitlines()], failed


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The lines of the table."""
    lines = [(row["benchmark"], row["compared"], number(row["ratio"]), row["machine"]) for row in rows]
    return aligned(("benchmark", "compared", "ratio (median)", "machine"), lines)


def main() -> int:
    rows, failed = run(FLAGS)
    print("", *table(rows), sep="\n")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
