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

from groupvit.config import to_dict
from groupvit.precision import emulation_warning
from pipelines.cluster.causes import root_cause
from pipelines.cluster.session import LineHandler, Terminal
from pipelines.errors import DrainedError
from pipelines.ingest.loader import iter_slices, num_prefetched, object_store_bytes
from pipelines.tracking.gauges import StepGauges
from pipelines.training.data import SlicesFromCheckpoint
from pipelines.training.departure import Departure, Wish, heed_drains, heed_driver
from pipelines.training.gpu import check_gpu, describe, ran_out_of_memory
from pipelines.training.job import Job
from pipelines.training.loop import WorkerContext, train
from pipelines.training.precision import PRECISION_TAG, settle_precision
from pipelines.training.progress import RunStoppedError
from pipelines.training.slice_size import out_of_memory
from pipelines.training.watchdog import Watchdog


def train_worker(settings: dict[str, Any]) -> str | None:
    """Runs one training process of Ray Train. Returns an error that the user must fix, or None."""
    job: Job = settings["job"]
    terminal: Terminal | None = settings["terminal"]
    say: Callable[[str], None] = print
    of_train = ray.train.get_context()
    if terminal is not None:
        say = terminal.put
        logging.getLogger("pipelines").addHandler(LineHandler(terminal))
        if of_train.get_world_rank() == 0:
            heed_driver(terminal)
    if settings["heeds_drains"]:
        heed_drains()
    shard = ray.train.get_dataset_shard("train")
    assert shard is not None
    rank, world_size = of_train.get_world_rank(), of_train.get_world_size()
    with Departure(_cpu_group(world_size)) as departure:
        return _work(job, shard, say, departure, rank=rank, world_size=world_size, device=get_device())


def train_here(job: Job) -> str | None:
    """Trains in this process, which is the only worker. Lines go to standard output. Returns as `train_worker` does."""
    device = torch.device("cuda", 0) if ray.get_gpu_ids() else torch.device("cpu")  # only its own GPUs are visible
    try:
        if device.type == "cuda":
            check_gpu()
        with Departure(None) as departure:
            return _work(job, SlicesFromCheckpoint(job)(), print, departure, rank=0, world_size=1, device=device)
    except Exception as error:
        cause = root_cause(error)
        if cause.is_lasting:
            return cause.line
        raise


def _work(
    job: Job,
    shard: ray.data.DataIterator | ray.data.Dataset,
    say: Callable[[str], None],
    departure: Departure,
    *,
    rank: int,
    world_size: int,
    device: torch.device,
) -> str | None:
    """Builds the inputs of the loop, and runs it. Returns as `train_worker` does.

    Raises DrainedError if the workers left, and others are to go on.
    """
    torch.set_num_threads(job.config.training.cpus_per_worker)
    first_step = job.run.latest_step()
    if first_step >= job.config.training.num_steps:  # Ray starts another group after the last step, but before it knew
        return None
    group = dist.group.WORLD if world_size > 1 else None
    precision, why = settle_precision(job.run, job.config.training.precision, device, group)
    training = dataclasses.replace(job.config.training, precision=precision, num_workers=world_size)
    config = dataclasses.replace(job.config, training=training)
    tracker = job.open_tracker(system_metrics=True) if rank == 0 else None
    gauges = StepGauges(job.config.run_name)
    watchdog = Watchdog(rank, config.training.hang_timeout if world_size > 1 else None, say)
    batch = job.config.training.global_batch_size
    context = WorkerContext(
        rank=rank,
        world_size=world_size,
        device=device,
        group=group,
        precision=precision,
        first_step=first_step,
        slices=iter_slices(shard, prefetch_slices=num_prefetched(config, object_store_bytes())),
        say=say,
        tracker=tracker,
        watch=lambda done, values: gauges.set(done, values, global_batch_size=batch),
        checkpoint_state=job.checkpoint_state,
        leave_requested=departure.is_due,
        feed_watchdog=watchdog.feed,
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
        with watchdog:
            train(config, job.run, context)
    except DrainedError as drained:
        if rank == 0:
            say(f"{config.run_name}: {drained}")
        if departure.wish is Wish.STOP:
            return None
        raise
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


def _cpu_group(world_size: int) -> dist.ProcessGroup | None:
    """Returns a group of all workers for tensors on the CPU. None: a single worker."""
    if world_size == 1:
        return None
    group = dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup)
    return group
