"""How the slices of a run reach its workers. Apart from the rest of pretraining: Ray keeps a process that only hands
data out, which then needs no PyTorch."""

import dataclasses

import ray.data
import ray.train

from pipelines.ingest.loader import training_slices
from pipelines.training.job import Job


@dataclasses.dataclass(frozen=True)
class SlicesFromCheckpoint:
    """The data of the steps that are still to do."""

    job: Job

    def __call__(self) -> ray.data.Dataset:
        return training_slices(self.job.config, first_step=self.job.run.latest_step(), stay_open=True)


class RoundRobin(ray.train.DataConfig):
    """Worker r of W gets the slices with index ≡ r (mod W), in order."""

    def configure(self, datasets, world_size, worker_handles, worker_node_ids, **kwargs):  # type: ignore[no-untyped-def]
        shards = {name: dataset.streaming_split(world_size, equal=False) for name, dataset in datasets.items()}
        return [{name: iterators[rank] for name, iterators in shards.items()} for rank in range(world_size)]
