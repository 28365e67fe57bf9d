"""Actors on a Ray cluster that each hold a copy of a model, and take pieces of work as they get free."""

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
"""A class whose instances do the work: `Worker(model, num_threads=..., device=...)`; `device` says where."""


@dataclass(frozen=True)
class ModelWorkers:
    """The actors and the model they share. One that dies is replaced, and its piece done again."""

    actors: Sequence[Any]
    model: ray.ObjectRef

    def each(self, method: Callable[..., Any], shared: Any, pieces: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """(index, `method(worker, shared, piece)`) of each piece, as they get done. `shared` is sent once.

        What a worker found wrong is raised as it is by the context of the workers.
        """
        pool: Any = ActorPool(list(self.actors))
        reference = ray.put(shared)
        yield from pool.map_unordered(
            lambda actor, piece: actor.do.remote([self.model], method, reference, *piece), enumerate(pieces)
        )


def resolved_precision(workers: ModelWorkers, choice: PrecisionChoice) -> Precision:
    """The precision that `choice` means where the workers compute; a warning is printed where it is emulated there."""
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
    """Workers for the time of the context. ValueError when there are more than the cluster can place, or for what
    one of them found wrong."""
    with ray_cluster():
        each = {"CPU": cpus_per_worker} | ({"GPU": gpus_per_worker} if gpus_per_worker else {})
        check_room("num_workers", num_workers, each, ray.cluster_resources(), "the Ray cluster")
        actor: Any = ray.remote(
            num_cpus=cpus_per_worker,
            num_gpus=gpus_per_worker,
            max_restarts=3,
            max_task_retries=3,
            # Anywhere: not where the caller is held, which for a trial of a sweep has no room for others.
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
    """A worker in an actor. The model comes with each piece and is read once, so a restarted actor gets it again."""

    def __init__(self, worker: Worker, num_threads: int, device: str) -> None:
        self._make, self._num_threads, self._device = worker, num_threads, device
        self._worker: Any = None

    def do(
        self, model: list[ray.ObjectRef], method: Callable[..., Any], shared: Any, index: int, piece: Any
    ) -> tuple[int, Any]:
        """`model` is a reference in a list, which Ray hands over without reading it."""
        if self._worker is None:
            self._worker = self._make(ray.get(model[0]), num_threads=self._num_threads, device=self._device)
        return index, method(self._worker, shared, piece)
