"""Workers agree when to leave, whoever was asked."""

import os
import signal
import subprocess
import sys

import torch.distributed as dist

from pipelines.training.departure import Departure, Process, Wish
from tests.support.torch_workers import run_workers

CASES: list[tuple[dict[int, tuple[int, Wish]], tuple[int, Wish]]] = [
    ({0: (5, Wish.MOVE)}, (6, Wish.MOVE)),
    ({2: (5, Wish.MOVE)}, (6, Wish.MOVE)),
    ({0: (7, Wish.MOVE), 1: (5, Wish.STOP)}, (6, Wish.STOP)),
    ({0: (5, Wish.MOVE), 1: (5, Wish.STOP)}, (6, Wish.STOP)),
]
"""Rank → the step in which it is asked, and for what; then the step after which all leave, and for what."""


def leave(group: dist.ProcessGroup) -> list[tuple[int, int]]:
    return [leave_once(group, asked) for asked, _ in CASES]


def leave_once(group: dist.ProcessGroup, asked: dict[int, tuple[int, Wish]]) -> tuple[int, int]:
    """Steps until the workers leave, in a process that was asked nothing before."""
    step, wish = asked.get(dist.get_rank(group), (-1, Wish.STAY))
    process = Process()
    departure = Departure(group, process)
    for done in range(100):
        if done == step:
            process.ask(wish)
        dist.barrier(group)
        if departure.is_due():
            return done, int(departure.wish)
    raise AssertionError("nobody left")


def test_all_workers_leave_after_the_same_step() -> None:
    assert run_workers(leave, 3) == [[(step, int(wish)) for _, (step, wish) in CASES]] * 3


SIGTERM = """
import os, signal, sys, threading
from pipelines.training.departure import Departure, heed_sigterm
heed_sigterm()
departure = Departure(None)
assert not departure.is_due()
print("ready", flush=True)
def wait():
    while not departure.is_due():
        pass
    print("leaves", flush=True)
threading.Thread(target=wait, daemon=True).start()
import ctypes
ctypes.CDLL(None).sleep(600)  # as a Ray worker's main thread, outside Python
"""


def test_sigterm_is_heard_while_the_main_thread_is_outside_python_and_the_second_ends() -> None:
    process = subprocess.Popen([sys.executable, "-c", SIGTERM], stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "leaves\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
