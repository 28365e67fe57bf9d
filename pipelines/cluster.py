"""Where a pretraining run computes: the Ray cluster it joins or starts, whether its workers find room there, and how
what they have to say reaches the terminal."""

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import ray
import torch
from ray.util.queue import Queue

from pipelines.config import ExperimentConfig


@contextmanager
def ray_cluster(config: ExperimentConfig) -> Iterator[None]:
    """A Ray cluster: the one this process or RAY_ADDRESS names, else one on this machine for the time of the run."""
    if ray.is_initialized():
        yield
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=config.training.show_ray_logs, logging_level=logging.WARNING)
    else:
        num_cpus = os.cpu_count() or 1
        _check_workers(config, num_cpus=num_cpus, num_gpus=torch.cuda.device_count(), place="this machine")
        # One CPU more than the workers take, on paper: the tasks that read the data need a place on small machines too.
        least = config.training.num_workers * config.training.cpus_per_worker + 1
        ray.init(
            address="local",
            num_cpus=max(num_cpus, least),
            include_dashboard=False,
            log_to_driver=config.training.show_ray_logs,
            logging_level=logging.WARNING,
        )
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def data_cluster(*, show_ray_logs: bool) -> Iterator[None]:
    """The same for work on data alone, which takes what there is."""
    if ray.is_initialized():
        yield
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=show_ray_logs, logging_level=logging.WARNING)
    else:
        ray.init(address="local", include_dashboard=False, log_to_driver=show_ray_logs, logging_level=logging.WARNING)
    try:
        yield
    finally:
        ray.shutdown()


def check_cluster(config: ExperimentConfig) -> bool:
    """Whether the workers use GPUs. ValueError if there are more workers than the cluster can place."""
    resources = ray.cluster_resources()
    num_cpus, num_gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    return _check_workers(
        config, num_cpus=num_cpus - 1, num_gpus=num_gpus, place="the Ray cluster beside one for the data"
    )


def _check_workers(config: ExperimentConfig, *, num_cpus: int, num_gpus: int, place: str) -> bool:
    training = config.training
    use_gpu = training.device == "gpu" or (training.device == "auto" and num_gpus > 0)
    if use_gpu and training.num_workers > num_gpus:
        raise ValueError(
            f"training.num_workers={training.num_workers} needs as many GPUs, and {place} has {num_gpus}: give at most "
            f"{num_gpus}, or --training.device cpu"
        )
    needed = training.num_workers * training.cpus_per_worker
    if needed > num_cpus:
        raise ValueError(
            f"training.num_workers={training.num_workers} x training.cpus_per_worker={training.cpus_per_worker} needs "
            f"{needed} CPUs, and {place} has {num_cpus}: give at most {num_cpus // training.cpus_per_worker} workers"
        )
    return use_gpu


@contextmanager
def shown_lines() -> Iterator[Queue]:
    """A queue whose lines are printed here as they come: progress alone, without the chatter of Ray's own processes."""
    lines = Queue(actor_options={"num_cpus": 0})

    def show() -> None:
        while (line := lines.get()) is not None:
            print(line, flush=True)

    thread = threading.Thread(target=show, name="shown-lines", daemon=True)
    thread.start()
    try:
        yield lines
    finally:
        lines.put(None)
        thread.join(timeout=10)
        lines.shutdown()


class LineHandler(logging.Handler):
    """Sends log records to such a queue."""

    def __init__(self, lines: Queue) -> None:
        super().__init__(logging.WARNING)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.put(record.getMessage())
