"""Joins or starts the Ray cluster of a command, checks that its workers fit, and prints their lines in the terminal."""

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.cluster.causes import is_of_ray, root_cause
from pipelines.cluster.start import join_cluster, named_address, start_cluster
from pipelines.console.terminal import without_ray_lines
from pipelines.local.home import provide_ray_token

_READS_AHEAD = "iter_threaded"
"""Name of the threads in which Ray Data's iterators prefetch."""
_SILENCE_SECONDS = 45.0
"""Number of seconds without a line of the workers after which the driver says so."""


@contextmanager
def ray_cluster(*, least_cpus: int = 1, show_logs: bool = False) -> Iterator[None]:
    """Provide a Ray cluster: the one this process or RAY_ADDRESS names, else a local one for the context.

    An error of Ray in the context is raised as its root cause, in one line (`Cause.to_error`).

    Args:
        least_cpus: Minimum number of CPUs of a cluster started here, even if the machine has fewer.
        show_logs: Whether to show the logs of Ray's processes, including its C++ parts in this process.
    """
    joined_here = not ray.is_initialized()
    with without_ray_lines() if joined_here and not show_logs else nullcontext():
        if joined_here:
            _join_or_start(least_cpus, show_logs)
            _exit_by_sigterm()
        try:
            yield
        except Exception as error:
            if not is_of_ray(error):
                raise
            raise root_cause(error).to_error() from error
        finally:
            if joined_here:
                shut_down()


def _join_or_start(least_cpus: int, show_logs: bool) -> None:
    # Ray's warnings concern its internals, like the tokens by which its processes authenticate.
    level = logging.WARNING if show_logs else logging.ERROR
    if (address := named_address()) is not None:
        join_cluster(address, log_to_driver=show_logs, logging_level=level)
    else:
        # This saves one process per run: nobody preempts this machine.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        provide_ray_token(os.environ)
        start_cluster(
            num_cpus=max(os.cpu_count() or 1, least_cpus),
            include_dashboard=False,
            log_to_driver=show_logs,
            logging_level=level,
        )


def _exit_by_sigterm() -> None:
    """Let SIGTERM end this process with exit code 143. Ray's handler would give it 15."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def shut_down() -> None:
    """Leave the cluster, and stop it if it was started here, once no thread of this process reads from it.

    An iterator that is abandoned before its end tells its prefetching thread to stop, but does not wait for it. Ray
    would free memory that a thread waiting for a block still uses, and the process could die of SIGSEGV.
    """
    for thread in threading.enumerate():
        if thread.name == _READS_AHEAD:
            thread.join(timeout=10)
    ray.shutdown()


def starts_here() -> bool:
    """Whether `ray_cluster` would start a cluster."""
    return not ray.is_initialized() and named_address() is None


def check_room(
    field: str, num_workers: int, each: Mapping[str, float], resources: Mapping[str, float], place: str
) -> None:
    """Raise ValueError if the resources of `place` are too few for `num_workers` workers, which would wait forever."""
    for kind, amount in each.items():
        available = resources.get(kind, 0)
        if num_workers * amount > available:
            raise ValueError(
                f"{field}={num_workers} with {amount:g} {kind} each needs {num_workers * amount:g} {kind}s, and "
                f"{place} has {available:g}: give at most {int(available // amount)}"
            )


class _Messages:
    """Actor that passes lines from workers to the driver, and the word to stop from the driver to workers."""

    def __init__(self) -> None:
        self._lines: asyncio.Queue[str | None] = asyncio.Queue()
        self._stop = asyncio.Event()

    async def put(self, line: str | None) -> None:
        await self._lines.put(line)

    async def get(self) -> str | None:
        return await self._lines.get()

    async def stop(self) -> None:
        self._stop.set()

    async def wait_until_stopped(self) -> None:
        await self._stop.wait()


class Terminal:
    """The driver's terminal, for workers: shows their lines, and says when the user wants to stop. Can be pickled."""

    def __init__(self) -> None:
        # On the driver's node: the job would fail if the actor were lost with another node.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._messages: Any = ray.remote(num_cpus=0)(_Messages).options(scheduling_strategy=here).remote()

    def put(self, line: str | None) -> None:
        """Show a line. None: it was the last."""
        ray.get(self._messages.put.remote(line))

    def get(self, when_silent: Callable[[], None]) -> str | None:
        """Wait for the next line, and return it. Call `when_silent` whenever 45 seconds have passed without one."""
        line = self._messages.get.remote()
        while not ray.wait([line], timeout=_SILENCE_SECONDS)[0]:
            when_silent()
        return ray.get(line)

    def stop(self) -> None:
        """Tell the workers to stop. Does not wait."""
        self._messages.stop.remote()

    def wait_until_stopped(self) -> None:
        """Return when the workers are to stop."""
        ray.get(self._messages.wait_until_stopped.remote())

    def close(self) -> None:
        ray.kill(self._messages)


@contextmanager
def shown_lines(when_silent: str) -> Iterator[Terminal]:
    """Yield a terminal whose lines are printed here as they arrive: progress only, not the logs of Ray's processes.

    `when_silent` is a line for whenever 45 seconds have passed without one.
    """
    terminal = Terminal()

    def show() -> None:
        while (line := terminal.get(lambda: print(when_silent, flush=True))) is not None:
            print(line, flush=True)

    thread = threading.Thread(target=show, name="shown-lines", daemon=True)
    thread.start()
    try:
        yield terminal
    finally:
        terminal.put(None)
        thread.join(timeout=10)
        terminal.close()


class LineHandler(logging.Handler):
    """Sends log records to a terminal."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__(logging.WARNING)
        self._terminal = terminal

    def emit(self, record: logging.LogRecord) -> None:
        self._terminal.put(record.getMessage())
