"""The table of `make bench`."""

from pathlib import Path

import pytest

from tests.performance.report import ROWS, report
from tests.performance.run import FLAGS, run, table


def test_every_benchmark_is_run_and_reports() -> None:
    scripts = {file.stem: file.read_text() for file in Path(__file__).parent.glob("benchmark_*.py")}
    assert set(FLAGS) == set(scripts)
    for name, script in scripts.items():
        assert "    report(" in script, name
        assert all(f'"{flag}"' in script for flag in FLAGS[name] if flag.startswith("--")), name


def test_rows_become_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report("ingest", {"a / b": 1.5})  # nobody asked for rows
    monkeypatch.setenv(ROWS, str(tmp_path / "rows"))
    report("ingest", {"a / b": 1.5, "a / c": 0.25})
    assert len((tmp_path / "rows").read_text().splitlines()) == 2
    row = {"benchmark": "ingest", "compared": "a / b", "ratio": 1.5, "machine": "a CPU"}
    assert table([row])[-1].split() == ["ingest", "a", "/", "b", "1.50", "a", "CPU"]


@pytest.mark.benchmark
def test_rows_of_a_script_arrive_and_one_that_fails_is_named() -> None:
    quick = ("--batch-size", "2", "--repeats", "1", "--only", "float32-0")
    rows, failed = run({"benchmark_training_step": quick, "benchmark_evaluate": ("no-such-benchmark",)})
    assert [(row["benchmark"], row["compared"]) for row in rows] == [
        ("training step", "float32, K=0: ours / transformers")
    ]
    assert rows[0]["ratio"] > 0 and "cores" in rows[0]["machine"]
    assert failed == ["benchmark_evaluate"]
