"""CPUs of reading processes, on clusters that may lose a node."""

import dataclasses

import pytest

from pipelines.experiments.catalogue import debug
from pipelines.experiments.config import ExperimentConfig
from pipelines.ingest.room import Node, cpus_of_reader, free_cpus

CPU_NODE, LARGE = {"CPU": 1.0}, {"CPU": 64.0}
GPU_NODE = {"CPU": 32.0, "GPU": 8.0}


def config_of(num_workers: int | str, **changes: object) -> ExperimentConfig:
    training = dataclasses.replace(debug().training, num_workers=num_workers, **changes)  # pyright: ignore
    return dataclasses.replace(debug(), training=training)


@pytest.mark.parametrize(
    ("num_workers", "changes", "nodes", "free", "each"),
    [
        (4, {}, [{"CPU": 8.0}], 4, 1),
        (4, {}, [{"CPU": 4.0}], 0, 1),  # a fixed number: it waits for room
        ("2:4", {}, [{"CPU": 8.0}], 4, 1),  # a node that goes takes the workers along
        ("2:4", {}, [{"CPU": 2.0}, CPU_NODE, CPU_NODE], 0, 0),
        ("2:4", {}, [{"CPU": 2.0}, CPU_NODE, CPU_NODE, CPU_NODE], 1, 0),  # four workers may stay on four CPUs
        ("2:4", {}, [{"CPU": 2.0}, *[CPU_NODE] * 5], 3, 1),
        ("2:4", {}, [LARGE, LARGE], 124, 1),
        ("2:16", {"device": "gpu", "cpus_per_worker": 4}, [GPU_NODE, GPU_NODE, LARGE], 64, 0),
        ("2:16", {"device": "gpu", "cpus_per_worker": 4}, [GPU_NODE, GPU_NODE, LARGE, LARGE], 128, 1),
        ("2:16", {"device": "gpu", "cpus_per_worker": 2}, [GPU_NODE, GPU_NODE, LARGE], 96, 1),
    ],
)
def test_a_reading_process_needs_no_cpu_that_may_never_be_free(
    num_workers: int | str, changes: dict[str, object], nodes: list[Node], free: int, each: int
) -> None:
    config = config_of(num_workers, **changes)
    assert (free_cpus(config, nodes), cpus_of_reader(config, nodes)) == (free, each)
