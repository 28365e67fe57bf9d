"""One training worker: builds the inputs of `loop.train`, and calls it."""

import dataclasses
import json
import logging
from collections.abc import Callable
from typing import Any

import ray
import ray.data
import ray.train
import torch
import torch.distributed as dist
from ray.train.torch import get_device
from ray.util.queue import Queue

from groupvit.config import to_dict
from groupvit.precision import emulation_warning
from pipelines.cluster.causes import root_cause
from pipelines.cluster.session import LineHandler
from pipelines.ingest.loader import iter_slices, num_prefetched, object_store_bytes
from pipelines.tracking.gauges import StepGauges
from pipelines.training.data import SlicesFromCheckpoint
from pipelines.training.gpu import check_gpu, describe, ran_out_of_memory
from pipelines.training.job import Job
from pipelines.training.loop import WorkerContext, train
from pipelines.training.precision import PRECISION_TAG, settle_precision
from pipelines.training.progress import RunStoppedError
from pipelines.training.slice_size import out_of_memory


def train_worker(settings: dict[str, Any]) -> str | None:
    """Runs one training process of Ray Train. Returns an error that the user must fix, or None."""
    job: Job = settings["job"]
    lines: Queue | None = settings["lines"]
    say: Callable[[str], None] = print
    if lines is not None:
        say = lines.put
        logging.getLogger("pipelines").addHandler(LineHandler(lines))
    of_train = ray.train.get_context()
    shard = ray.train.get_dataset_shard("train")
    assert shard is not None
    rank, world_size = of_train.get_world_rank(), of_train.get_world_size()
    return _work(job, shard, say, rank=rank, world_size=world_size, device=get_device())


def train_here(job: Job) -> str | None:
    """Trains in this process, which is the only worker. Lines go to standard output. Returns as `train_worker` does."""
    device = torch.device("cuda", 0) if ray.get_gpu_ids() else torch.device("cpu")  # only its own GPUs are visible
    try:
        if device.type == "cuda":
            check_gpu()
        return _work(job, SlicesFromCheckpoint(job)(), print, rank=0, world_size=1, device=device)
    except Exception as error:
        cause = root_cause(error)
        if cause.is_lasting:
            return cause.line
        raise


def _work(
    job: Job,
    shard: ray.data.DataIterator | ray.data.Dataset,
    say: Callable[[str], None],
    *,
    rank: int,
    world_size: int,
    device: torch.device,
) -> str | None:
    """Builds the inputs of the loop, and runs it."""
    torch.set_num_threads(job.config.training.cpus_per_worker)
    first_step = job.run.latest_step()
    group = dist.group.WORLD if world_size > 1 else None
    precision, why = settle_precision(job.run, job.config.training.precision, device, group)
    training = dataclasses.replace(job.config.training, precision=precision)
    config = dataclasses.replace(job.config, training=training)
    tracker = job.open_tracker(system_metrics=True) if rank == 0 else None
    gauges = StepGauges(job.config.run_name)
    batch = job.config.training.global_batch_size
    context = WorkerContext(
        rank=rank,
        world_size=world_size,
        device=device,
        group=group,
        precision=precision,
        first_step=first_step,
        slices=iter_slices(shard, prefetch_slices=num_prefetched(job.config, object_store_bytes())),
        say=say,
        tracker=tracker,
        watch=lambda done, values: gauges.set(done, values, global_batch_size=batch),
        checkpoint_state=job.checkpoint_state,
    )
    if rank == 0:
        started = f"from step {first_step}" if first_step else "from the start"
        say(f"{config.run_name}: training {started} on {world_size} x {device.type} in {precision} ({why})")
        if (warning := emulation_warning(precision, device)) is not None:
            say(warning)
    try:
        if tracker is not None:
            tracker.log_text(json.dumps(to_dict(config), indent=2), "config.json")
            tracker.set_tags({PRECISION_TAG: precision})
        train(config, job.run, context)
    except RunStoppedError as error:  # a restart would not help
        return str(error)
    except Exception as error:
        if ran_out_of_memory(error):  # a lasting error: after a restart, a step would need as much
            raise ValueError(out_of_memory(config, describe(device))) from error
        cause = root_cause(error)
        if not cause.is_lasting:  # the driver reports a lasting cause, once
            say(f"rank {rank} failed: {cause.line}")
        raise
    finally:
        if tracker is not None:
            tracker.close(None)  # only the driver knows whether the run has ended
    return None
