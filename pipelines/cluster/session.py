"""The Ray cluster a command joins or starts, whether its workers find room there, and how what they have to say
reaches the terminal."""

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
"""Name of the threads of Ray Data's iterators."""


@contextmanager
def ray_cluster(*, least_cpus: int = 1, show_logs: bool = False) -> Iterator[None]:
    """A Ray cluster: the one this process or RAY_ADDRESS names, else one here for the time of the context.

    A cluster that is started here has at least `least_cpus`, if only on paper. `show_logs`: what Ray's processes log,
    its C++ parts in this process included, is shown as well. What fails there in the context is raised as its root
    cause: one line (`Cause.to_error`).
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
    # Ray's warnings tell of its own affairs, like the tokens by which its processes know each other.
    level = logging.WARNING if show_logs else logging.ERROR
    if (address := named_address()) is not None:
        join_cluster(address, log_to_driver=show_logs, logging_level=level)
    else:
        # One process less per run: nobody takes this machine away in advance.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        provide_ray_token(os.environ)
        start_cluster(
            num_cpus=max(os.cpu_count() or 1, least_cpus),
            include_dashboard=False,
            log_to_driver=show_logs,
            logging_level=level,
        )


def shut_down() -> None:
    """Leaves the cluster, and ends it if it was started here, once nothing in this process reads from it any more.

    A data set that is left before its end tells the thread that reads ahead to stop, and does not wait for it. Ray
    would free what a thread that still waits for a block works with, and the process could die of SIGSEGV.
    """
    for thread in threading.enumerate():
        if thread.name == _READS_AHEAD:
            thread.join(timeout=10)
    ray.shutdown()


def starts_here() -> bool:
    """Whether `ray_cluster` would start one."""
    return not ray.is_initialized() and named_address() is None


def check_room(
    field: str, num_workers: int, each: Mapping[str, float], resources: Mapping[str, float], place: str
) -> None:
    """ValueError if `place`, which has these resources, has no room for so many workers: they would wait for ever."""
    for kind, amount in each.items():
        available = resources.get(kind, 0)
        if num_workers * amount > available:
            raise ValueError(
                f"{field}={num_workers} with {amount:g} {kind} each needs {num_workers * amount:g} {kind}s, and "
                f"{place} has {available:g}: give at most {int(available // amount)}"
            )


@contextmanager
def shown_lines() -> Iterator[Queue]:
    """A queue whose lines are printed here as they come: progress alone, without the chatter of Ray's own processes."""
    # Beside the driver: a queue that went down with some other node would take the job with it.
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
    """Sends log records to such a queue."""

    def __init__(self, lines: Queue) -> None:
        super().__init__(logging.WARNING)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.put(record.getMessage())
