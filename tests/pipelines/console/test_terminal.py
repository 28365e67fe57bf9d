"""Output whose reader is gone, whose disk is full, or which cannot show a character, as a process of its own has it."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.dataset_folder import make_dataset

_START = "import os, sys\nfrom pipelines.console.terminal import *\nkeep_going()\n"


def run(code: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", _START + code], text=True, timeout=60, **options)


def closed_pipe() -> int:
    """A pipe to write to, whose reader is gone."""
    read, write = os.pipe()
    os.close(read)
    return write


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_work_goes_on_without_a_reader(tmp_path: Path, stream: str) -> None:
    code = (
        f"[print('x' * 999, file=sys.{stream}, flush=True) for _ in range(100)]; "
        "import threading; thread = threading.Thread(target=print, args=('y',)); thread.start(); thread.join(); "
        f"open({str(tmp_path / 'done')!r}, 'w'); sys.exit(failure_of_output())"
    )
    other = "stderr" if stream == "stdout" else "stdout"
    write = closed_pipe()
    done = run(code, **{stream: write, other: subprocess.PIPE})
    os.close(write)
    assert done.returncode == 0
    assert (done.stdout or "") == ("y\n" if other == "stdout" else "") and not done.stderr
    assert (tmp_path / "done").exists()


def test_a_command_writes_its_files_and_says_nothing_of_the_pipe(tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data", 8).uri
    command = [sys.executable, "-m", "pipelines.cli", "inspect", data, "--out", str(tmp_path / "page.html"), "--json"]
    write = closed_pipe()
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(write)
    assert done.returncode == 0 and done.stderr == f"wrote {tmp_path}/page.html\n"
    assert (tmp_path / "page.html").exists()


def test_a_full_disk_under_the_output_is_told_after_the_work() -> None:
    with open("/dev/full", "w") as full:
        done = run("print('x', flush=True); print('y'); sys.exit(failure_of_output())", stdout=full, stderr=-1)
    assert (done.returncode, done.stderr) == (1, "standard output: No space left on device\n")


def test_streams_that_the_shell_closed_are_not_taken_by_files(tmp_path: Path) -> None:
    code = f"file = open({str(tmp_path / 'file')!r}, 'w'); print('x', flush=True); os.write(2, b'y'); file.write('z')"
    command = 'exec "$0" -c "$1" <&- >&- 2>&-'
    done = subprocess.run(["sh", "-c", command, sys.executable, _START + code], timeout=60)
    assert done.returncode == 0
    assert (tmp_path / "file").read_text() == "z"


@pytest.mark.parametrize(
    ("variables", "shown"),
    [
        ({"PYTHONIOENCODING": "ascii"}, b"na\\xefve \\u2026"),
        ({"LC_ALL": "C"}, "naïve …".encode()),  # Python then takes UTF-8
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, b"na\\xefve \\u2026"),
    ],
)
def test_characters_that_the_terminal_does_not_have_are_escaped(variables: dict[str, str], shown: bytes) -> None:
    code = _START + "print('na\\xefve \\u2026'); print('na\\xefve \\u2026', file=sys.stderr)"
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHONIO"))
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment | variables, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout.strip(), done.stderr.strip()) == (0, shown, shown)


def test_lines_of_rays_cpp_parts_are_left_out_and_no_others() -> None:
    ray = "[2026-11-26 22:36:58,116 {} 11169 11170] core_worker.cc:2465: Actor with class name: 'A'\n"
    lines = [ray.format("E"), "Corrupt JPEG data\n", ray.format("W"), ray.format("C"), "[x] y.cc: no\n"]
    code = (
        f"lines = {lines!r}\n"
        "with without_ray_lines():\n"
        "    [os.write(2, line.encode()) for line in lines]\n"
        "    print('progress', file=sys.stderr, flush=True)\n"
        "os.write(2, lines[0].encode())\n"
    )
    done = run(code, capture_output=True)
    shown = done.stderr.splitlines(keepends=True)
    assert done.returncode == 0
    assert [line for line in shown if line != "progress\n"] == [lines[1], lines[3], lines[4], lines[0]]
    assert "progress\n" in shown


def test_ctrl_c_is_one_line_and_an_end_by_sigint() -> None:
    done = run("os.kill(os.getpid(), 2); import time; time.sleep(9)", stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "groupvit: stopped by Ctrl-C\n")
