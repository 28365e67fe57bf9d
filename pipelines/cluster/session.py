"""Joins or starts the Ray cluster of a command, checks that its workers fit, and prints their lines in the terminal."""

import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext

import ray
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.cluster.causes import is_of_ray, root_cause
from pipelines.cluster.start import join_cluster, named_address, start_cluster
from pipelines.console.terminal import without_ray_lines
from pipelines.local.home import provide_ray_token

_READS_AHEAD = "iter_threaded"
"""Name of the threads in which Ray Data's iterators prefetch."""


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


@contextmanager
def shown_lines() -> Iterator[Queue]:
    """Yield a queue whose lines are printed here as they arrive: progress only, without the logs of Ray's processes."""
    # On the driver's node: the job would fail if the queue were lost with another node.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    lines = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})

    def show() -> None:
        while (line := lines.get()) is not None:
            print(line, flush=True)

    thread = threading.Thread(target=show, name="shown-lines", daemon=True)
    thread.start()
    try:
        yield lines
    finally:
        lines.put(None)
        thread.join(timeout=10)
        lines.shutdown()


class LineHandler(logging.Handler):
    """Sends log records to a queue of `shown_lines`."""

    def __init__(self, lines: Queue) -> None:
        super().__init__(logging.WARNING)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.put(record.getMessage())
