"""What benchmarks found, as rows for one table; see run.py."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from tests.performance.machine import machine

ROWS = "BENCHMARK_ROWS"
"""Environment variable: the file to which rows are added. Without it, none are written."""


def report(benchmark: str, ratios: Mapping[str, float]) -> None:
    """Add a row for each ratio: what is compared → the median over turns."""
    if file := os.environ.get(ROWS):
        with Path(file).open("a") as rows:
            for compared, ratio in ratios.items():
                row = {"benchmark": benchmark, "compared": compared, "ratio": ratio, "machine": machine()}
                rows.write(json.dumps(row) + "\n")
