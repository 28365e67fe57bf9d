"""The CPUs that are left for reading on a cluster whose nodes come and go."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.experiments.config import ExperimentConfig

Node = Mapping[str, float]
"""Resources of a node that Ray takes to be alive."""


def free_cpus(config: "ExperimentConfig", nodes: Sequence[Node]) -> int:
    """Number of CPUs of these nodes that neither training nor evaluation requests; at least 0."""
    training, evaluation = config.training, config.evaluation
    taken = _num_workers(config, nodes) * training.cpus_per_worker
    if evaluation.every_n_steps is not None:
        taken += evaluation.num_workers * evaluation.cpus_per_worker
    return max(int(sum(node.get("CPU", 0) for node in nodes)) - taken, 0)


def cpus_of_reader(config: "ExperimentConfig", nodes: Sequence[Node]) -> int:
    """Number of CPUs that Ray reserves for a reading process: 1, or 0 if it could wait for one for ever.

    It could if the number of workers may change, and they take all CPUs, or all but those of one node that can go while
    they stay. It may be about to go, or be gone without Ray's knowledge. The process then shares the workers' CPUs.
    """
    if not _may_change(config):
        return 1
    num_workers = _num_workers(config, nodes)
    may_be_left = [nodes, *([*nodes[:index], *nodes[index + 1 :]] for index in _one_of_each_kind(nodes))]
    may_wait = any(_num_workers(config, left) == num_workers and not free_cpus(config, left) for left in may_be_left)
    return 0 if may_wait else 1


def _may_change(config: "ExperimentConfig") -> bool:
    return config.training.min_workers < config.training.max_workers


def _num_workers(config: "ExperimentConfig", nodes: Sequence[Node]) -> int:
    """Number of workers that Ray Train starts on these nodes."""
    training = config.training
    if not _may_change(config):
        return training.max_workers
    each = {"CPU": float(training.cpus_per_worker)}
    if training.device != "cpu" and any(node.get("GPU", 0) for node in nodes):
        each["GPU"] = training.gpus_per_worker
    room = [min(int(node.get(kind, 0) // amount) for kind, amount in each.items()) for node in nodes]
    return min(sum(room), training.max_workers)


def _one_of_each_kind(nodes: Sequence[Node]) -> list[int]:
    """Indexes of nodes of which no two have the same CPUs and GPUs."""
    return list({(node.get("CPU", 0), node.get("GPU", 0)): index for index, node in enumerate(nodes)}.values())
