"""`tests/gpu/check.py` as a rehearsal on the CPU, and the page that is filled from its results."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gpu import fill_performance
from tests.gpu.card.report import WHOLE, Report, SkippedError
from tests.gpu.fill_performance import BEGIN, END, filled, section

ROOT = Path(__file__).parents[2]
LACKING = ("simplejpeg", "ftfy", "spacy", "mlflow", "tyro", "s3fs", "boto3", "ray", "img2dataset", "optuna", "pynvml")
ABOUT = {"card": "NVIDIA H100 80GB HBM3", "driver": "580.95.05", "capability": "9.0", "torch": "2.14.1+cu130"}
ABOUT |= {"cores": 16, "date": "2026-12-01", "commit": "0123abc", "quick": False}


def run_check(part: int, out: Path, *flags: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """Runs a part as on a machine that has none of the packages that a bare machine lacks."""
    script = ROOT / "tests/gpu/check.py"
    program = (
        f"import runpy, sys; sys.modules.update(dict.fromkeys({LACKING!r})); sys.argv = sys.argv[1:]\n"
        f"sys.path[0] = {str(script.parent)!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    arguments = [str(script), "--part", str(part), "--device", "cpu", "--quick", "--out", str(out), *flags]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=out.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done, json.loads((out / f"part{part}.json").read_text())


def rows_of(result: Mapping[str, Any], kind: str) -> dict[str, str]:
    """Section and name of the rows with this result → why."""
    return {f"{row['section']}: {row['name']}": row["why"] for row in result["rows"] if row["result"] == kind}


@pytest.mark.slow
def test_part_1_runs_on_a_bare_machine(tmp_path: Path) -> None:
    done, result = run_check(1, tmp_path / "out")
    assert result["complete"]
    assert not rows_of(result, "failed")
    sections = ["where am I", "same numbers", "compiled start", "Hugging Face", "speed"]
    assert list(result["seconds_of_sections"]) == sections
    assert rows_of(result, "skipped").keys() == {"Hugging Face: batch 4, 3 prompts, float32, compiled"}
    assert "0 failed" in done.stdout.splitlines()[-1]


def test_numbers_run_on_a_bare_machine(tmp_path: Path) -> None:
    done, result = run_check(1, tmp_path / "out", "--section", "same numbers")
    assert not rows_of(result, "failed")
    assert len(rows_of(result, "ok")) >= 10
    assert result["about"]["card"].startswith("the CPU")
    assert "0 failed" in done.stdout.splitlines()[-1]


def test_what_needs_ray_is_skipped_by_name(tmp_path: Path) -> None:
    _, result = run_check(2, tmp_path / "out", "--section", "Ray")
    assert rows_of(result, "skipped") == {f"Ray: {WHOLE}": "not run: needs the package ray"}


@pytest.mark.slow
def test_part_2_runs_with_ray(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tests/gpu/check.py"), "--part", "2", "--device", "cpu", "--quick"]
    done = subprocess.run([*command, "--out", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    result = json.loads((tmp_path / "part2.json").read_text())
    assert {"Ray: a killed worker resumes", "Ray: evaluation beside training"} <= rows_of(result, "ok").keys()
    assert "Ray: from JPEG files, augmented on the device" in rows_of(result, "measured")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_no_gpu_is_said_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tests/gpu/check.py"), "--part", "1", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("torch finds no GPU on this machine")


def report(folder: Path, limit_seconds: float = 60.0) -> Report:
    return Report(folder, 1, ABOUT, limit_seconds=limit_seconds)


def raise_it(error: Exception) -> None:
    raise error


def test_a_row_that_fails_or_is_skipped_does_not_end_its_section(tmp_path: Path) -> None:
    found = report(tmp_path)

    def run() -> None:
        found.row("skips", partial(raise_it, SkippedError("no reason")))
        found.row("lacks", partial(raise_it, ModuleNotFoundError("", name="ray")))
        found.row("too large", partial(raise_it, torch.OutOfMemoryError()))
        found.row("fails", partial(raise_it, ValueError("on two\nlines")))
        found.row("takes long", partial(raise_it, AssertionError()), seconds=1000.0)
        found.at_most("an error", 2.0, 1.0)
        found.measured("last", {"images/s": 1234.5})

    found.section("rows", run, limit_seconds=30)
    written = json.loads(found.path.read_text())
    assert not written["complete"]
    assert rows_of(written, "skipped") == {
        "rows: skips": "not run: no reason",
        "rows: lacks": "not run: needs the package ray",
        "rows: too large": "not run: out of memory",
        "rows: takes long": "not run: no time left: it takes about 1000 s",
    }
    assert rows_of(written, "failed") == {
        "rows: fails": "ValueError: on two lines",
        "rows: an error": "the error is above its bound",
    }
    assert found.finish() == 1
    assert json.loads(found.path.read_text())["complete"]


def test_a_section_is_interrupted_and_the_next_begins(tmp_path: Path) -> None:
    found = report(tmp_path)
    found.section("long", lambda: found.row("sleeps", partial(time.sleep, 60)), limit_seconds=1.05)
    found.section("next", lambda: found.measured("runs", {}), limit_seconds=30)
    assert [(row.section, row.name, row.result) for row in found.rows] == [
        ("long", "sleeps", "failed"),
        ("long", WHOLE, "failed"),
        ("next", "runs", "measured"),
    ]
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_section_without_time_is_skipped(tmp_path: Path) -> None:
    found = report(tmp_path, limit_seconds=0.5)
    found.section("late", partial(raise_it, AssertionError()), limit_seconds=30)
    assert [row.why for row in found.rows] == ["not run: no time left of 0 s"]
    assert found.finish() == 0


def a_part(**about: Any) -> dict[str, Any]:
    speed = {"images/s": 12345.6, "MFU": 0.327, "step ms": 82.94, "kernels ms": 80.0, "host ms": 21.0}
    rows = [
        ("where am I", "matrix product in bfloat16", "measured", {"side": 8192, "TFLOP/s": 782.3}, ""),
        ("same numbers", "gradients", "ok", {"error": 2e-5, "bound": 1e-4, "loss": 1e-7}, ""),
        ("same numbers", "label maps", "failed", {"error": 0.5, "bound": 0.01}, "the error is above its bound"),
        ("speed", "batch 1024, 3 prompts, bfloat16, compiled", "measured", speed, ""),
        ("Hugging Face", "batch 256", "skipped", {}, "not run: needs the package transformers"),
    ]
    return {
        "part": 1,
        "about": ABOUT | about,
        "complete": True,
        "rows": [dict(zip(("section", "name", "result", "values", "why"), row, strict=True)) for row in rows],
    }


def test_the_page_is_filled_between_its_markers(tmp_path: Path) -> None:
    page, results = tmp_path / "page.md", tmp_path / "part1.json"
    page.write_text(f"# Before\n\n{BEGIN}\nold\n{END}\n\nAfter.\n")
    results.write_text(json.dumps(a_part()))
    command = [sys.executable, fill_performance.__file__, str(results), "--page", str(page)]
    for _ in range(2):  # again: the same
        subprocess.run(command, check=True)
        assert page.read_text().startswith(f"# Before\n\n{BEGIN}\n\nMeasured on one NVIDIA H100 80GB HBM3")
        assert page.read_text().endswith(f"\n{END}\n\nAfter.\n")
        assert "old" not in page.read_text()
    text = page.read_text()
    assert "(driver 580.95.05, torch 2.14.1+cu130, 782 TFLOP/s in an 8192³ bfloat16 product)" in text
    assert "| training step | images/s | share of peak FLOP/s | step, ms | kernels, ms | host, ms |\n" in text
    assert "| batch 1024, 3 prompts, bfloat16, compiled | 12,346 | 32.7% | 82.9 | 80.0 | 21.0 |\n" in text
    assert "- same numbers, gradients: error 2e-05, bound 0.0001.\n" in text
    assert "- **Failed**: same numbers, label maps: error 0.5, bound 0.01, the error is above its bound.\n" in text
    assert "- Hugging Face, batch 256: not run: needs the package transformers.\n" in text


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (a_part(driver=None, capability=None), "part 1 is of a rehearsal on the CPU: run it on a card"),
        (a_part(quick=True), "part 1 is of --quick: run it without"),
        (a_part() | {"complete": False}, "part 1 was killed before its end: run it again"),
    ],
)
def test_what_is_no_measurement_is_refused(part: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        section([part])
    with pytest.raises(ValueError, match="of different cards"):
        section([a_part(), a_part(card="NVIDIA A10G")])


def test_the_projects_page_has_the_markers() -> None:
    filled(fill_performance.PAGE.read_text(), "text")
    with pytest.raises(ValueError, match="each once"):
        filled(f"{END} {BEGIN}", "text")
