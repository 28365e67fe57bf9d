"""Which failures of the workers end a run, and what ends a start that does not come to an end.

All of it runs in Ray Train's controller, which does not import torch.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray.train
from ray.exceptions import RayActorError
from ray.train.v2._internal.execution.callback import WorkerGroupCallback  # developer API

from pipelines.cluster.causes import root_cause
from pipelines.errors import DrainedError, WorkFailedError


class FailureLimit(ray.train.UserCallback):
    """Ends the training after a failure that would happen again, and after more than `max_failures` others.

    Ray alone would restart the workers after the first kind, and count workers that leave a drained node as failed.
    """

    def __init__(self, max_failures: int) -> None:
        self._max_failures, self._num_failures = max_failures, 0

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        if any(_left_or_lost_its_node(error) for error in worker_exceptions.values()):
            return
        cause = root_cause(ray.train.WorkerGroupError("", worker_exceptions))
        if cause.is_lasting:
            raise ValueError(cause.line)
        self._num_failures += 1
        if self._num_failures > self._max_failures:
            raise WorkFailedError(
                f"the workers failed more than training.max_failures={self._max_failures} times, at last by: "
                f"{cause.line}; see docs/operations.md"
            )


class StartLimit(WorkerGroupCallback):
    """Ends the controller if the processes of the workers do not start in time, so that the driver starts another.

    Ray has no limit for this: if a node goes away after it was chosen for a worker, the controller waits until there is
    room for another such worker. A new controller counts what room is left.
    """

    def __init__(self, seconds: float, say: Callable[[str], None]) -> None:
        """`say` shows a line to the user."""
        self._seconds, self._say = seconds, say
        self._timer: threading.Timer | None = None

    @contextmanager
    def on_worker_group_start(self) -> Iterator[None]:
        self._timer = threading.Timer(self._seconds, self._end_controller)
        self._timer.daemon = True
        self._timer.start()
        try:
            yield
        finally:
            self._timer.cancel()

    def before_init_train_context(self, workers: list[Any]) -> dict[str, list[Any]]:
        """The processes have started."""
        if self._timer is not None:
            self._timer.cancel()
        return {}

    def _end_controller(self) -> None:
        try:
            self._say(
                f"the workers have not started within {self._seconds:.0f} s, e.g. because a node went away: starting "
                "those for which there is room"
            )
        finally:
            os._exit(os.EX_TEMPFAIL)


def _left_or_lost_its_node(error: Exception) -> bool:
    """Whether the worker left by itself, or went away with a node of which Ray knew that it would."""
    death = getattr(error, "health_check_failure", error)
    if isinstance(death, RayActorError) and death.preempted:
        return True
    return root_cause(error).kind == f"{DrainedError.__module__}.{DrainedError.__qualname__}"
