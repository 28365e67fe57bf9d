"""Workers agree when to leave, whoever was asked."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from pipelines.errors import DrainedError
from pipelines.runs.folder import RunFolder
from pipelines.training.departure import Departure, Process, Wish
from tests.support.lone_worker import SLICE, lone_config, train_as_one_of
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


def leave_while_the_checkpoint_is_written(group: dist.ProcessGroup, runs: Path) -> list[int]:
    """Steps with a checkpoint when this worker's error reaches Ray, which then ends the others."""
    process = Process()
    process.ask(Wish.MOVE)
    save_checkpoint = RunFolder.save_checkpoint

    def slow(*arguments: Any) -> None:
        time.sleep(2)
        save_checkpoint(*arguments)

    def train() -> None:
        config = lone_config(runs, num_steps=9, global_batch_size=2 * SLICE, checkpoint_every_n_steps=9)
        with Departure(group, process) as departure:
            train_as_one_of(group, config, runs, leave_requested=departure.is_due)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "save_checkpoint", slow)
        with pytest.raises(DrainedError, match="left after step 2, with a"):
            train()
    return RunFolder(str(runs / "small")).checkpoint_steps()


def test_no_worker_raises_before_the_checkpoint_is_published(tmp_path: Path) -> None:
    assert run_workers(leave_while_the_checkpoint_is_written, 2, tmp_path) == [[2], [2]]


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
