"""Scores scenes on a Ray cluster, by actors that take blocks as they get free."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayTaskError
from ray.util import ActorPool

from groupvit.model import GroupViT
from pipelines.cluster import check_room, ray_cluster
from pipelines.progress_line import ProgressLine
from pipelines.scoring import Scorer, Scores, Task

SCENES_PER_BLOCK = 16


@dataclass(frozen=True)
class ScoringWorkers:
    """The actors of one evaluation and the model they share. One that dies is replaced, and its block scored again."""

    actors: Sequence[Any]
    model: ray.ObjectRef

    def score(self, task: Task, chosen: Sequence[int], progress: ProgressLine | None = None) -> Scores:
        """Sums over the chosen scenes. ValueError for a scene that cannot be read."""
        total, shared = Scores(), ray.put(task)
        pool: Any = ActorPool(list(self.actors))
        blocks = task.dataset.blocks(chosen, SCENES_PER_BLOCK)
        try:
            for scores in pool.map_unordered(
                lambda actor, block: actor.score.remote([self.model], shared, block), blocks
            ):
                total.add(scores)
                if progress is not None:
                    progress.add(scores.num_scenes)
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, ValueError) else error from None
        return total


@contextmanager
def scoring_workers(
    model: GroupViT, num_workers: int, *, cpus_per_worker: int = 1, gpus_per_worker: float = 0.0
) -> Iterator[ScoringWorkers]:
    """Workers for the time of the context. ValueError when there are more than the cluster can place."""
    with ray_cluster():
        each = {"CPU": cpus_per_worker} | ({"GPU": gpus_per_worker} if gpus_per_worker else {})
        check_room("num_workers", num_workers, each, ray.cluster_resources(), "the Ray cluster")
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

    def score(self, model: list[ray.ObjectRef], task: Task, block: Any) -> Scores:
        """`model` is a reference in a list, which Ray hands over without reading it."""
        if self._scorer is None:
            self._scorer = Scorer(ray.get(model[0]), num_threads=self._num_threads, device=self._device)
        return self._scorer.score(task, block)
