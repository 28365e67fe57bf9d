"""Delivers the slices of a run to its workers.

This module is separate from the rest of pretraining because Ray keeps a process that only distributes data. That
process then does not import PyTorch.
"""

import dataclasses

import ray.data
import ray.train

from pipelines.cluster.session import Terminal
from pipelines.ingest.loader import training_slices
from pipelines.runs.damage import newest_whole_step
from pipelines.training.job import Job


@dataclasses.dataclass(frozen=True)
class SlicesFromCheckpoint:
    """Creates the data set of the remaining steps, starting at the newest checkpoint.

    It is called before the workers start. It moves damaged checkpoints away, so that all of them go on from the same.
    """

    job: Job
    terminal: Terminal | None = None
    """Shows warnings. None: print them."""

    def __call__(self) -> ray.data.Dataset:
        first_step = newest_whole_step(self.job.run, print if self.terminal is None else self.terminal.put)
        return training_slices(self.job.config, first_step=first_step, stay_open=True)


class RoundRobin(ray.train.DataConfig):
    """Gives worker r of W the slices with index ≡ r (mod W), in order."""

    def configure(self, datasets, world_size, worker_handles, worker_node_ids, **kwargs):  # type: ignore[no-untyped-def]
        shards = {name: dataset.streaming_split(world_size, equal=False) for name, dataset in datasets.items()}
        return [{name: iterators[rank] for name, iterators in shards.items()} for rank in range(world_size)]
