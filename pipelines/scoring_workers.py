"""Scores scenes on a Ray cluster, by actors that take blocks as they get free."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayTaskError
from ray.util import ActorPool

from groupvit.model import GroupViT
from pipelines.benchmarks.scenes import SceneBlock
from pipelines.scoring import Scorer, Scores, Task

SCENES_PER_BLOCK = 16


@dataclass(frozen=True)
class ScoringWorkers:
    """The actors of one evaluation and the model they share. One that dies is replaced, and its block scored again."""

    actors: Sequence[Any]
    model: ray.ObjectRef

    def score(self, task: Task, chosen: Sequence[int]) -> Scores:
        """Sums over the chosen scenes. ValueError for a scene that cannot be read."""
        total, shared = Scores(), ray.put(task)
        pool: Any = ActorPool(list(self.actors))
        blocks = task.dataset.blocks(chosen, SCENES_PER_BLOCK)
        try:
            for scores in pool.map_unordered(
                lambda actor, block: actor.score.remote([self.model], shared, block), blocks
            ):
                total.add(scores)
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, ValueError) else error from None
        return total


@contextmanager
def scoring_workers(
    model: GroupViT, num_workers: int, *, cpus_per_worker: int = 1, gpus_per_worker: float = 0.0
) -> Iterator[ScoringWorkers]:
    """Workers for the time of the context. ValueError when there are more than the cluster can place."""
    with _cluster():
        _check_cluster(num_workers, cpus_per_worker, gpus_per_worker)
        worker: Any = ray.remote(
            num_cpus=cpus_per_worker, num_gpus=gpus_per_worker, max_restarts=3, max_task_retries=3
        )(_Worker)
        device = "cuda" if gpus_per_worker else "cpu"
        actors = [worker.remote(cpus_per_worker, device) for _ in range(num_workers)]
        try:
            yield ScoringWorkers(actors, ray.put(model))
        finally:
            for actor in actors:
                ray.kill(actor)


class _Worker:
    """A `Scorer` in an actor. The model comes with each block and is read once, so a restarted actor gets it again."""

    def __init__(self, num_threads: int, device: str) -> None:
        self._num_threads, self._device = num_threads, device
        self._scorer: Scorer | None = None

    def score(self, model: list[ray.ObjectRef], task: Task, block: SceneBlock) -> Scores:
        """`model` is a reference in a list, which Ray hands over without reading it."""
        if self._scorer is None:
            self._scorer = Scorer(ray.get(model[0]), num_threads=self._num_threads, device=self._device)
        return self._scorer.score(task, block)


@contextmanager
def _cluster() -> Iterator[None]:
    """A Ray cluster: the one this process or RAY_ADDRESS names, else one here for the time of the context."""
    if ray.is_initialized():
        yield
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False)
    else:
        ray.init(address="local", include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


def _check_cluster(num_workers: int, cpus_per_worker: int, gpus_per_worker: float) -> None:
    resources = ray.cluster_resources()
    for kind, each in (("CPU", cpus_per_worker), ("GPU", gpus_per_worker)):
        needed, available = num_workers * each, resources.get(kind, 0)
        if needed > available:
            raise ValueError(
                f"num_workers={num_workers} needs {needed:g} {kind}s, the cluster has {available:g}: give fewer"
            )
