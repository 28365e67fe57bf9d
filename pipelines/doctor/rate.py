"""Measures how fast the machines of a cluster add up numbers, as training does with gradients."""

from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.cluster.causes import root_cause
from pipelines.console.findings import Finding
from pipelines.doctor.config import DoctorConfig
from pipelines.doctor.probe import RateWorker

SLOW_RATE = 0.1e9
"""Bytes per second and machine below which the network is called slow: 1 Gbit/s."""
_GRADIENTS = 223e6
"""Bytes of the gradients of the paper's model."""


def rate(nodes: Sequence[tuple[str, str, float]], config: DoctorConfig) -> list[Finding]:
    """Measure the rate of an all-reduce between one process on each machine: by nccl if all have GPUs, else by gloo.

    Args:
        nodes: Name, id and number of GPUs of each machine.
    """
    backend = "nccl" if all(num_gpus > 0 for _, _, num_gpus in nodes) else "gloo"
    workers: list[Any] = [
        ray.remote(RateWorker)
        .options(
            num_cpus=0,
            num_gpus=1 if backend == "nccl" else 0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
        )
        .remote()
        for _, node_id, _ in nodes
    ]
    try:
        urls = ray.get([worker.prepare.remote() for worker in workers], timeout=config.seconds_to_answer)
        num_bytes = int(1e6 * config.probe_megabytes)
        asked = [
            worker.measure.remote(backend, rank, len(workers), urls[0], num_bytes)
            for rank, worker in enumerate(workers)
        ]
        slowest = min(ray.get(asked, timeout=config.seconds_to_answer))
    except GetTimeoutError:
        text = f"{backend} did not start within {config.seconds_to_answer:g} s"
        fix = "wait until the GPUs are free, and try again" if backend == "nccl" else "see `ray status`"
        return [Finding(check="all-reduce", status="warning", text=text, fix=fix)]
    except RayError as error:
        return [Finding(check="all-reduce", status="fault", text=root_cause(error).line)]
    finally:
        for worker in workers:
            ray.kill(worker)
    seconds = 2 * _GRADIENTS / slowest
    text = f"{slowest / 1e9:.2f} GB/s by {backend} for each of {len(nodes)} machines: at most {seconds:.2f} s for the "
    text += "gradients of the paper's model"
    if slowest >= SLOW_RATE:
        return [Finding(check="all-reduce", status="OK", text=text)]
    fix = "take a faster network, --training.reduce-precision bfloat16, or choose the interface by "
    fix += f"{'NCCL' if backend == 'nccl' else 'GLOO'}_SOCKET_IFNAME"
    return [Finding(check="all-reduce", status="warning", text=text, fix=fix)]
