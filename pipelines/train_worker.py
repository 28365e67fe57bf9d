"""One training worker: gathers what `train_loop.train` needs from Ray Train, and runs it."""

import json
import logging
from collections.abc import Callable
from typing import Any

import ray.train
import torch
import torch.distributed as dist
from ray.train.torch import get_device
from ray.util.queue import Queue

from groupvit.config import to_dict
from pipelines.cluster import LineHandler
from pipelines.ingest import iter_slices, message_of
from pipelines.job import Job
from pipelines.progress import RunStoppedError
from pipelines.ray_metrics import StepGauges
from pipelines.train_loop import WorkerContext, train


def train_worker(settings: dict[str, Any]) -> str | None:
    """One training process, as Ray Train runs it: gather what the loop needs, run the loop. Returns what the user
    must mend."""
    job: Job = settings["job"]
    lines: Queue | None = settings["lines"]
    say: Callable[[str], None] = print if lines is None else lines.put
    if lines is not None:
        logging.getLogger("pipelines").addHandler(LineHandler(lines))
    ray_context, device = ray.train.get_context(), get_device()
    rank, world_size = ray_context.get_world_rank(), ray_context.get_world_size()
    torch.set_num_threads(job.config.training.cpus_per_worker)
    first_step = job.run.latest_step()
    tracker = job.open_tracker(system_metrics=True) if rank == 0 else None
    gauges = StepGauges(job.config.run_name)
    batch = job.config.training.global_batch_size
    shard = ray.train.get_dataset_shard("train")
    assert shard is not None
    context = WorkerContext(
        rank=rank,
        world_size=world_size,
        device=device,
        group=dist.group.WORLD if world_size > 1 else None,
        first_step=first_step,
        slices=iter_slices(shard, prefetch_slices=job.config.ingest.prefetch_slices),
        say=say,
        tracker=tracker,
        watch=lambda done, values: gauges.set(done, values, global_batch_size=batch),
        checkpoint_state=job.checkpoint_state,
    )
    if rank == 0:
        started = f"from step {first_step}" if first_step else "from the start"
        say(f"{job.config.run_name}: training {started} on {world_size} x {device.type}")
    try:
        if tracker is not None:
            tracker.log_text(json.dumps(to_dict(job.config), indent=2), "config.json")
        train(job.config, job.run, context)
    except RunStoppedError as error:  # starting again would not help
        return str(error)
    except Exception as error:
        say(f"rank {rank} failed: {message_of(error)}")
        raise
    finally:
        if tracker is not None:
            tracker.close(None)  # the driver knows whether the run has ended
    return None
