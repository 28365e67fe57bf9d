"""Actors on a Ray cluster. Each holds a copy of a model and takes the next piece of work when it is free."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.util import ActorPool
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from groupvit.config import Precision, PrecisionChoice
from groupvit.model import GroupViT
from groupvit.precision import emulation_warning, resolve_precision
from pipelines.cluster.session import check_room, ray_cluster

Worker = Callable[..., Any]
"""A class whose instances do the work: `Worker(model, num_threads=..., device=...)`. Instances have a `device`."""


@dataclass(frozen=True)
class ModelWorkers:
    """The actors and the model that they share. An actor that dies is restarted, and its piece of work is repeated."""

    actors: Sequence[Any]
    model: ray.ObjectRef

    def each(self, method: Callable[..., Any], shared: Any, pieces: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """Yields (index, `method(worker, shared, piece)`) for each piece as it finishes. `shared` is sent once.

        The context of the workers raises the error of a worker unchanged.
        """
        pool: Any = ActorPool(list(self.actors))
        reference = ray.put(shared)
        yield from pool.map_unordered(
            lambda actor, piece: actor.do.remote([self.model], method, reference, *piece), enumerate(pieces)
        )


def resolved_precision(workers: ModelWorkers, choice: PrecisionChoice) -> Precision:
    """Returns the precision that `choice` means on the workers' device. Prints a warning if that device emulates it."""
    [(_, (precision, warning))] = workers.each(_resolve, choice, [None])
    if warning is not None:
        print(warning, file=sys.stderr)
    return precision


def _resolve(worker: Any, choice: PrecisionChoice, _: None) -> tuple[Precision, str | None]:
    precision = resolve_precision(choice, worker.device)
    return precision, emulation_warning(precision, worker.device)


@contextmanager
def model_workers(
    worker: Worker, model: GroupViT, num_workers: int, *, cpus_per_worker: int = 1, gpus_per_worker: float = 0.0
) -> Iterator[ModelWorkers]:
    """Yields workers, which are killed at the end of the context.

    Raises ValueError if the cluster has no room for them, and the ValueError of a worker.
    """
    with ray_cluster():
        each = {"CPU": cpus_per_worker} | ({"GPU": gpus_per_worker} if gpus_per_worker else {})
        check_room("num_workers", num_workers, each, ray.cluster_resources(), "the Ray cluster")
        actor: Any = ray.remote(
            num_cpus=cpus_per_worker,
            num_gpus=gpus_per_worker,
            max_restarts=3,
            max_task_retries=3,
            # Anywhere: in a sweep, the placement group of the calling trial has no room for other actors.
            scheduling_strategy=PlacementGroupSchedulingStrategy(placement_group=None),  # type: ignore[arg-type]
        )(_ModelWorker)
        device = "cuda" if gpus_per_worker else "cpu"
        actors = [actor.remote(worker, cpus_per_worker, device) for _ in range(num_workers)]
        try:
            yield ModelWorkers(actors, ray.put(model))
        finally:
            for started in actors:
                ray.kill(started)


class _ModelWorker:
    """A worker in an actor. Each call brings the model, which is read once, so a restarted actor gets it again."""

    def __init__(self, worker: Worker, num_threads: int, device: str) -> None:
        self._make, self._num_threads, self._device = worker, num_threads, device
        self._worker: Any = None

    def do(
        self, model: list[ray.ObjectRef], method: Callable[..., Any], shared: Any, index: int, piece: Any
    ) -> tuple[int, Any]:
        """Applies `method` to a piece. `model` is a reference in a list, because Ray does not resolve it there."""
        if self._worker is None:
            self._worker = self._make(ray.get(model[0]), num_threads=self._num_threads, device=self._device)
        return index, method(self._worker, shared, piece)
