"""Which failures of the workers end a run. It is asked in Ray Train's controller, which does not import torch."""

from typing import Any

import ray.train
from ray.exceptions import RayActorError

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


def _left_or_lost_its_node(error: Exception) -> bool:
    """Whether the worker left by itself, or went away with a node of which Ray knew that it would."""
    death = getattr(error, "health_check_failure", error)
    if isinstance(death, RayActorError) and death.preempted:
        return True
    return root_cause(error).kind == f"{DrainedError.__module__}.{DrainedError.__qualname__}"
