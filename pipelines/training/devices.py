"""Asks the machines of a Ray cluster on which device a training worker would compute. The driver may have no GPU."""

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.errors import WorkFailedError
from pipelines.experiments.config import ExperimentConfig
from pipelines.training.memory import Device

_SMALL_SHARE = 0.01
"""Share of a GPU that the question takes."""
_SECONDS_TO_ANSWER = 180.0
"""A process has to start there, and to import torch."""


def worker_devices(config: ExperimentConfig, *, use_gpu: bool) -> list[Device]:
    """Returns the device of one worker on each node that may have one: a GPU, or a share of the node's memory.

    Raises ValueError, in one line, if torch cannot use a GPU; WorkFailedError if every GPU is taken.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if not use_gpu:
        return [_cpus(node["Resources"], config) for node in nodes if node["Resources"].get("CPU", 0) >= 1]
    asked = [
        ray.remote(_gpu)
        .options(
            num_cpus=0,
            num_gpus=_SMALL_SHARE,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        )
        .remote()
        for node in nodes
        if node["Resources"].get("GPU", 0) > 0
    ]
    answered, others = ray.wait(asked, num_returns=len(asked), timeout=_SECONDS_TO_ANSWER)
    for one in others:  # another job has all GPUs of that node
        ray.cancel(one)
    if not answered:
        raise WorkFailedError(
            f"ingest.slice_size=auto: no GPU of the cluster told its memory within {_SECONDS_TO_ANSWER:g} s, because "
            "other work has them: wait for it to end, or give a number"
        )
    return ray.get(answered)


def _gpu() -> Device:
    from pipelines.training.gpu import check_gpu, describe  # imports torch

    check_gpu()
    return describe("cuda:0")


def _cpus(resources: dict[str, float], config: ExperimentConfig) -> Device:
    """A node's share for each of the workers that it has room for. The precision `auto` is not known yet: float32 takes
    more memory."""
    training = config.training
    num_workers = max(min(training.max_workers, int(resources["CPU"] // training.cpus_per_worker)), 1)
    memory = resources.get("memory", 0.0) / num_workers
    return Device(name="a worker on CPUs", memory=memory, is_gpu=False, has_bfloat16=False)
