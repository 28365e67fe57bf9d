"""Lets all workers leave their group after the same step, with a checkpoint of it.

A worker is asked to leave by SIGTERM, by Ray when a node of the group is about to go away, before Ray starts a group of
another size, or by the driver, which was told to stop. It is enough to ask one worker: the workers tell each other
after each step. Only workers import torch for it.
"""

import enum
import logging
import os
import signal
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Any

import ray
import ray.train
from ray.exceptions import RayError

from pipelines.cluster.session import Terminal
from pipelines.errors import DrainedError

if TYPE_CHECKING:
    import torch.distributed as dist

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_QUESTIONS = 1.0
"""Pause between two questions to Ray whether a node is about to go away."""


class Wish(enum.IntEnum):
    """What the workers are asked to do. The largest wish of all workers counts."""

    STAY = 0
    MOVE = 1
    """Leave. Ray then starts another group, which goes on."""
    STOP = 2
    """Leave. The run ends until its command is given again."""


class Process:
    """What the worker of this process was asked to do, and whether it trains. Each group has new processes."""

    def __init__(self) -> None:
        self._wish, self._lock = Wish.STAY, threading.Lock()
        self.trains = False
        self.has_ended = threading.Event()

    @property
    def wish(self) -> Wish:
        return self._wish

    def ask(self, wish: Wish) -> None:
        with self._lock:
            self._wish = max(self._wish, wish)


_process = Process()
"""This one."""


class Departure:
    """Agrees with the other workers when to leave. In a `with` block, this process counts as one that trains.

    A block that ends by DrainedError waits for those of all workers: Ray ends all when one raises, and rank 0 must
    have published the checkpoint by then.

    Args:
        group: A group of all workers for tensors on the CPU. None: a single worker.
        process: What the worker is asked.
    """

    def __init__(self, group: "dist.ProcessGroup | None", process: Process = _process) -> None:
        self._group, self._process = group, process
        self._pending: tuple[Any, Any] | None = None
        self.wish = Wish.STAY
        """What all workers agreed on."""

    def is_due(self) -> bool:
        """Whether the workers leave now. A collective, which all workers call after each step.

        All get the same answer, by the end of the step after the one in which a worker was asked. Nobody waits for the
        others or for a GPU: the answer is about what was known one step earlier.
        """
        if self._group is None:
            self.wish = self._process.wish
            return self.wish is not Wish.STAY
        import torch
        import torch.distributed as dist

        if self._pending is not None:
            wish, sharing = self._pending
            sharing.wait()
            self.wish = Wish(int(wish))
        if self.wish is Wish.STAY:
            wish = torch.tensor(int(self._process.wish))
            self._pending = wish, dist.all_reduce(wish, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return self.wish is not Wish.STAY

    def __enter__(self) -> "Departure":
        self._process.trains = True
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if isinstance(error, DrainedError) and self._group is not None:
            import torch.distributed as dist

            try:
                dist.barrier(self._group)
            except RuntimeError as failure:
                logger.warning("a worker was lost while all left: %s", failure)
        self._process.trains = False
        self._process.has_ended.set()


def is_training() -> bool:
    """Whether the worker of this process is training."""
    return _process.trains


def leave_group(seconds: float) -> bool:
    """Asks the worker of this process to leave, and waits for that. Returns whether it has left."""
    _process.ask(Wish.MOVE)
    return _process.has_ended.wait(seconds)


def heed_sigterm() -> None:
    """Makes the first SIGTERM ask this process's worker to leave. A second one ends the process. Main thread only.

    The main thread of a Ray worker waits in C++, where Python cannot call a handler. But Python writes each signal to a
    pipe at once, and another thread reads it.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, _do_nothing)

    def wait() -> None:
        was_asked = False
        while number := os.read(read, 1):
            if number[0] == signal.SIGTERM:
                if was_asked:
                    os._exit(128 + signal.SIGTERM)
                was_asked = True
                _process.ask(Wish.MOVE)

    threading.Thread(target=wait, name="sigterm", daemon=True).start()


def _do_nothing(*_: object) -> None:
    """The thread that reads the pipe acts."""


def heed_drains() -> None:
    """Leaves when Ray says that a node of the group is about to go away. All workers call it: Ray asks them together,
    in a thread of each, so that no step waits."""

    def watch() -> None:
        while not _process.has_ended.wait(_SECONDS_BETWEEN_QUESTIONS):
            try:
                is_draining = ray.train.get_preemption_info() is not None
            except RayError:  # the group ends
                return
            if is_draining:
                _process.ask(Wish.MOVE)
                return

    threading.Thread(target=watch, name="drains", daemon=True).start()


def heed_driver(terminal: Terminal) -> None:
    """Stops when the driver was told to."""

    def watch() -> None:
        try:
            terminal.wait_until_stopped()
        except RayError:  # the driver has ended
            return
        _process.ask(Wish.STOP)

    threading.Thread(target=watch, name="driver", daemon=True).start()
