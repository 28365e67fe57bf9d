"""Signals during work that can end early, in a process of its own."""

import signal
import subprocess
import sys

import pytest

START = """
import os, sys, threading
from pipelines.console.stopping import run_stoppable
asked = threading.Event()
def work():
    os.kill(os.getpid(), {number})
    asked.wait()
    if {again}:
        os.kill(os.getpid(), {number})
        threading.Event().wait()
    return "done"
print(run_stoppable(work, asked.set))
"""


def run(number: int, *, again: bool) -> "subprocess.CompletedProcess[str]":
    code = START.format(number=int(number), again=again)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_ends(number: signal.Signals) -> None:
    once = run(number, again=False)
    assert (once.returncode, once.stdout) == (0, f"('done', {int(number)})\n")
    assert once.stderr == "stopping after this step, with a checkpoint; once more stops at once\n"
    twice = run(number, again=True)
    assert twice.returncode == (-signal.SIGINT if number == signal.SIGINT else 128 + signal.SIGTERM)


def test_work_that_nobody_stops_returns_or_raises_as_it_is() -> None:
    code = (
        "import signal\n"
        "from pipelines.console.stopping import run_stoppable\n"
        "assert run_stoppable(lambda: 3, None) == (3, None)\n"
        "assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL\n"
        "run_stoppable(lambda: 1 / 0, None)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == "ZeroDivisionError: division by zero"
