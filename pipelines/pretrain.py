"""Pretraining on Ray Train: checks, the run's folder, the workers, and what happens when one of them dies.

    groupvit pretrain debug --training.num-workers 2

The same command (same run name) continues a run that was stopped or killed. The driver checks what can be checked
before work starts; a worker is a few lines around `train_loop.train`. Checkpoints are kept by `RunFolder`, not by
Ray: a run then continues from whatever is whole on disk, whoever wrote it.
"""

import json
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train.torch import TorchTrainer, get_device
from ray.util.queue import Queue

from groupvit.config import to_dict
from pipelines.cluster import LineHandler, check_room, ray_cluster, shown_lines, starts_here
from pipelines.config import ExperimentConfig, validate
from pipelines.evaluation_record import EvaluationRecord, read_record
from pipelines.gloo import NodeAddressTorchConfig
from pipelines.ingest import iter_slices
from pipelines.job import Job, Ties, start_or_continue, with_absolute_paths
from pipelines.progress import RunStoppedError
from pipelines.ray_metrics import StepGauges
from pipelines.run_folder import RunFolder
from pipelines.schema import DatasetInfo
from pipelines.storage import StorageError
from pipelines.train_loop import WorkerContext, train
from pipelines.training_data import RoundRobin, SlicesFromCheckpoint
from pipelines.uncurated import open_source

# Seconds Ray may take to start a worker: it imports torch, which on a busy machine takes longer than Ray's minute.
os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "600")


def pretrain(config: ExperimentConfig, ties: Ties | None = None) -> dict[str, Any]:
    """Run `config`, or continue it, to its last step; returns the summary that `--json` prints. `ties`: it is a trial.

    Raises ValueError, before any work, for whatever the user got wrong; and when too many images turn out to be
    corrupt.
    """
    validate(config)
    config = with_absolute_paths(config)
    datasets = open_datasets(config)
    if config.evaluation.every_n_steps is not None:
        from pipelines.checkpoint_evaluator import check_evaluation  # MLflow and more, which no worker needs

        check_evaluation(config)
    run = RunFolder(f"{config.training.runs_folder}/{config.run_name}")
    job = start_or_continue(run, config, datasets, ties)
    first_step = run.latest_step()
    if first_step < config.training.num_steps or job.steps_to_evaluate():
        _train(job, None if ties is None else ties.on_score)
    return _summary(job, first_step, read_record(run) if job.evaluates else None)


def _train(job: Job, on_score: Callable[[int, float], None] | None) -> None:
    """Trains what is left to train, evaluates beside it and after it."""
    config = job.config
    training, evaluation = config.training, config.evaluation
    if starts_here():
        _check_workers(config, {"CPU": os.cpu_count() or 1, "GPU": torch.cuda.device_count()}, "this machine")
    # More CPUs than the workers take: what reads the data, and evaluates, needs a place on small machines too.
    others = 1 + (evaluation.num_workers * evaluation.cpus_per_worker if job.evaluates else 0)
    least_cpus = training.num_workers * training.cpus_per_worker + others
    with ray_cluster(least_cpus=least_cpus, show_logs=training.show_ray_logs):
        resources = ray.cluster_resources()
        resources["CPU"] = resources.get("CPU", 0) - others
        beside = f"{others} for the data and the evaluation" if job.evaluates else "one CPU for the data"
        use_gpu = _check_workers(config, resources, f"the Ray cluster, beside {beside},")
        evaluator = job.start_evaluator(on_score)
        try:
            if job.run.latest_step() < training.num_steps:
                with shown_lines() as lines:
                    _fit(job, lines, use_gpu=use_gpu)
        except BaseException:
            if evaluator is not None:
                evaluator.stop()
            raise
        if evaluator is not None:
            evaluator.finish()


def open_datasets(config: ExperimentConfig) -> list[DatasetInfo]:
    """The data sets of `config`. ValueError if one is missing or damaged, or if together they cannot fill a batch."""
    try:
        datasets = [open_source(uri) for uri in config.data.sources]
    except ValueError as error:
        raise ValueError(f"data.sources: {error}") from None
    for info in datasets:
        if info.is_raw:
            print(
                f"{info.uri}: raw shards, read as they are: {info.num_samples:,} images, nouns mined while training; "
                "`groupvit curate` makes a data set of them, once",
                file=sys.stderr,
            )
    total = sum(info.num_samples for info in datasets)
    if total < config.training.global_batch_size:
        raise ValueError(
            f"training.global_batch_size={config.training.global_batch_size} is more than the {total} samples of "
            "data.sources: the data cannot fill a batch; give a smaller batch or more data"
        )
    return datasets


def _check_workers(config: ExperimentConfig, resources: Mapping[str, float], place: str) -> bool:
    """Whether the workers use GPUs. ValueError if `place` has no room for them."""
    training = config.training
    use_gpu = training.device == "gpu" or (training.device == "auto" and resources.get("GPU", 0) > 0)
    each = {"CPU": float(training.cpus_per_worker)} | ({"GPU": training.gpus_per_worker} if use_gpu else {})
    check_room("training.num_workers", training.num_workers, each, resources, place)
    return use_gpu


def train_worker(settings: dict[str, Any]) -> str | None:
    """One training process, as Ray Train runs it: gather what the loop needs, run the loop. Returns what the user
    must mend."""
    job: Job = settings["job"]
    lines: Queue = settings["lines"]
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
        say=lines.put,
        tracker=tracker,
        watch=lambda done, values: gauges.set(done, values, global_batch_size=batch),
        checkpoint_state=job.checkpoint_state,
    )
    if rank == 0:
        started = f"from step {first_step}" if first_step else "from the start"
        lines.put(f"{job.config.run_name}: training {started} on {world_size} x {device.type}")
    try:
        if tracker is not None:
            tracker.log_text(json.dumps(to_dict(job.config), indent=2), "config.json")
        train(job.config, job.run, context)
    except RunStoppedError as error:  # starting again would not help
        return str(error)
    except Exception as error:
        lines.put(f"rank {rank} failed: {_message(error)}")
        raise
    finally:
        if tracker is not None:
            tracker.close(None)  # the driver knows whether the run has ended
    return None


def _fit(job: Job, lines: Queue, *, use_gpu: bool) -> None:
    config = job.config
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": job, "lines": lines},
        torch_config=NodeAddressTorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.training.num_workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": config.training.cpus_per_worker}
            | ({"GPU": config.training.gpus_per_worker} if use_gpu else {}),
        ),
        run_config=ray.train.RunConfig(
            name=config.run_name,
            storage_path=config.training.runs_folder,
            failure_config=ray.train.FailureConfig(max_failures=config.training.max_failures),
        ),
        # A function, not a data set: Ray calls it for every group of workers it starts, and the data then begin at the
        # checkpoint.
        datasets={"train": SlicesFromCheckpoint(job)},
        dataset_config=RoundRobin(),
    )
    error = "the workers failed"
    try:
        error = trainer.fit().return_value
    except ray.train.WorkerGroupError as failure:
        causes = failure.worker_failures.values()
        known = [cause for cause in causes if isinstance(cause, (ValueError, StorageError))]
        if not known:
            raise
        error = _message(known[0])
    finally:
        if error is not None and (tracker := job.open_tracker(system_metrics=False)) is not None:
            tracker.close("FAILED")
    if error is not None:
        raise ValueError(error)


def _message(error: Exception) -> str:
    """One line. An error that comes from a task of the ingest says more: a traceback, and advice on Ray."""
    found = re.findall(r"^\s*(?:ValueError|pipelines\.storage\.StorageError): (.+)$", str(error), re.MULTILINE)
    return found[-1] if found else str(error).strip().rpartition("\n")[2]


def _summary(job: Job, first_step: int, evaluations: EvaluationRecord | None) -> dict[str, Any]:
    """What `--json` prints of a complete run; read from its last checkpoint, so a second call gives the same."""
    config = job.config
    num_steps = config.training.num_steps
    state = job.run.read_state(num_steps)
    tracker = job.open_tracker(system_metrics=False)
    if tracker is not None:
        tracker.close("FINISHED")  # sends what a worker may have left unsent
    registered = None
    if evaluations is not None and tracker is not None and tracker.run_id and job.identity is not None:
        from pipelines.checkpoint_evaluator import register_best

        try:
            registered = register_best(config, job.run, evaluations, tracker.run_id, job.identity.uri)
        except ValueError as error:  # the training is done; the same command tries again
            print(f"the best checkpoint was not registered: {error}", file=sys.stderr)
    return {
        "experiment": config.name,
        "run": config.run_name,
        "checkpoint": job.run.checkpoint_uri(num_steps),
        "step": num_steps,
        "resumed_from_step": first_step,
        "loss": state["loss"],
        "train_seconds": round(state["train_seconds"], 2),
        "images_per_second": round(num_steps * config.training.global_batch_size / state["train_seconds"], 2),
        "substituted_images": state["substituted_images"],
        "mlflow_run_id": None if tracker is None else tracker.run_id,
        "evaluations": None if evaluations is None else evaluations.summary(),
        "registered_model": registered,
    }
