"""Pretraining on Ray Train: checks, the run's folder, the workers, and what happens when one of them dies.

    groupvit pretrain debug --training.num-workers 2

The same command (same run name) continues a run that was stopped or killed. The driver checks what can be checked
before work starts; what a worker does is in worker.py. Checkpoints are kept by `RunFolder`, not by
Ray: a run then continues from whatever is whole on disk, whoever wrote it.
"""

import os
import sys
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import ray
import ray.train
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer  # Ray's developer API; TorchTrainer brings torch
from ray.util.queue import Queue

from pipelines.cluster.causes import root_cause
from pipelines.cluster.session import check_room, ray_cluster, shown_lines, starts_here
from pipelines.console.progress import duration
from pipelines.console.terminal import interrupts_kept
from pipelines.dataset.format import DatasetInfo
from pipelines.errors import WorkFailedError
from pipelines.experiments.config import ExperimentConfig, validate
from pipelines.ingest.uncurated import open_source
from pipelines.local.folder_lock import only_one
from pipelines.runs.evaluations import EvaluationRecord, read_record
from pipelines.runs.folder import RunFolder
from pipelines.tracking.gauges import ascii_name
from pipelines.tracking.runs import is_reached, make_run
from pipelines.training.data import RoundRobin, SlicesFromCheckpoint
from pipelines.training.job import Job, Ties, check_places, start_or_continue, with_absolute_paths
from pipelines.training.process_group import ProcessGroup

# Seconds Ray may take to start a worker: it imports torch, which on a busy machine takes longer than Ray's minute.
os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "600")


def pretrain(config: ExperimentConfig, ties: Ties | None = None) -> dict[str, Any]:
    """Run `config`, or continue it, to its last step; prints its results, which a run that is complete already has as
    well, and returns the summary that `--json` prints. `ties`: it is a trial.

    Raises ValueError, before any work, for whatever the user got wrong; and when too many images turn out to be
    corrupt.
    """
    validate(config)
    config = with_absolute_paths(config)
    datasets = open_datasets(config)
    if config.evaluation.every_n_steps is not None:
        from pipelines.evaluation.checkpoint_evaluator import check_evaluation  # MLflow and more, which no worker needs

        check_evaluation(config)
    run = RunFolder(f"{config.training.runs_folder}/{config.run_name}")
    check_places(run, config)
    job = start_or_continue(run, config, datasets, ties)
    first_step = run.latest_step()
    if first_step < config.training.num_steps or job.steps_to_evaluate():
        # A sweep holds its own folder, in which the process of a trial may live on for a moment.
        with only_one(run.uri, "run") if ties is None else nullcontext():
            _train(job, ties)
    summary = _summary(job, first_step, read_record(run) if job.evaluates else None)
    print(_results(summary), flush=True)
    return summary


def _train(job: Job, ties: Ties | None) -> None:
    """Trains what is left to train, evaluates beside it and after it."""
    config = job.config
    training, evaluation = config.training, config.evaluation
    if starts_here():
        _check_workers(config, {"CPU": os.cpu_count() or 1, "GPU": gpus_here(config)}, "this machine")
    # More CPUs than the workers take: what reads the data, and evaluates, needs a place on small machines too.
    others = 1 + (evaluation.num_workers * evaluation.cpus_per_worker if job.evaluates else 0)
    least_cpus = training.num_workers * training.cpus_per_worker + others
    mlflow_answers = _ask_mlflow(job) if ties is None else None  # a sweep has asked, itself
    with ray_cluster(least_cpus=least_cpus, show_logs=training.show_ray_logs):
        resources = ray.cluster_resources()
        resources["CPU"] = resources.get("CPU", 0) - others
        beside = f"{others} for the data and the evaluation" if job.evaluates else "one CPU for the data"
        use_gpu = _check_workers(config, resources, f"the Ray cluster, beside {beside},")
        if mlflow_answers is not None and job.identity is not None and mlflow_answers.result():
            make_run(job.identity)
        evaluator = job.start_evaluator(None if ties is None else ties.on_score)
        try:
            if job.run.latest_step() < training.num_steps:
                _fit(job, ties, use_gpu=use_gpu)
        except BaseException:
            if evaluator is not None:
                evaluator.stop()
            raise
        if evaluator is not None:
            evaluator.finish()


def _ask_mlflow(job: Job) -> Future[bool] | None:
    """Whether MLflow answers, which takes seconds, while Ray starts; ValueError if it refuses. None: no tracking."""
    if job.identity is None:
        return None
    pool = ThreadPoolExecutor(1, thread_name_prefix="tracking")
    answers = pool.submit(is_reached, job.identity)
    pool.shutdown(wait=False)
    return answers


def trains_in_place(config: ExperimentConfig) -> bool:
    """Whether a trial of `config` trains in the process that Ray Tune gives it, which must then have what a worker has.

    The processes by which Ray Train starts workers, starts them again and makes them wait for each other are six, and
    take over half of a tiny trial's CPU time. One worker has nobody to wait for, and Tune starts a trial again.
    """
    return config.training.num_workers == 1


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


def gpus_here(config: ExperimentConfig) -> int:
    """GPUs of this machine that the config may use."""
    if config.training.device == "cpu":
        return 0
    import torch

    return torch.cuda.device_count()


def uses_gpu(config: ExperimentConfig, available: float) -> bool:
    """Whether training workers take GPUs where so many are available."""
    return config.training.device == "gpu" or (config.training.device == "auto" and available > 0)


def resources_per_worker(config: ExperimentConfig, *, use_gpu: bool) -> dict[str, float]:
    """What Ray reserves for a training worker."""
    training = config.training
    return {"CPU": float(training.cpus_per_worker)} | ({"GPU": training.gpus_per_worker} if use_gpu else {})


def _check_workers(config: ExperimentConfig, resources: Mapping[str, float], place: str) -> bool:
    """Whether the workers use GPUs. ValueError if `place` has no room for them."""
    use_gpu = uses_gpu(config, resources.get("GPU", 0))
    each = resources_per_worker(config, use_gpu=use_gpu)
    check_room("training.num_workers", config.training.num_workers, each, resources, place)
    return use_gpu


def _train_worker(settings: dict[str, Any]) -> str | None:
    from pipelines.training.worker import train_worker  # torch, for which a driver has no use

    return train_worker(settings)


def _fit(job: Job, ties: Ties | None, *, use_gpu: bool) -> None:
    """Trains to the last step. A run that fails is marked so in MLflow; ValueError for what the user must mend."""
    error = "the workers failed"
    try:
        if ties is not None and trains_in_place(job.config):
            from pipelines.training.worker import train_here

            error = train_here(job)
        else:
            # What a trial has to say goes to Ray's logs; the sweep has a line of its own.
            with shown_lines() if ties is None else nullcontext() as lines:
                error = _fit_on_workers(job, lines, use_gpu=use_gpu)
    finally:
        if error is not None and (tracker := job.open_tracker(system_metrics=False)) is not None:
            tracker.close("FAILED")
    if error is not None:
        raise ValueError(error)


def _fit_on_workers(job: Job, lines: Queue | None, *, use_gpu: bool) -> str | None:
    """Trains on workers of Ray Train; returns what the user must mend."""
    config = job.config
    trainer = DataParallelTrainer(
        _train_worker,
        train_loop_config={"job": job, "lines": lines},
        backend_config=ProcessGroup("nccl" if use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.training.num_workers,
            use_gpu=use_gpu,
            resources_per_worker=resources_per_worker(config, use_gpu=use_gpu),
        ),
        run_config=ray.train.RunConfig(
            # Ray writes next to nothing there. Where its name for the run is not ours, the folder is within the run's.
            name=(name := ascii_name(config.run_name)),
            storage_path=config.training.runs_folder if name == config.run_name else job.run.uri,
            failure_config=ray.train.FailureConfig(max_failures=config.training.max_failures),
            callbacks=[_StopsAtWhatLasts()],
        ),
        # A function, not a data set: Ray calls it for every group of workers it starts, and the data then begin at the
        # checkpoint.
        datasets={"train": SlicesFromCheckpoint(job)},
        dataset_config=RoundRobin(),
    )
    try:
        with interrupts_kept():
            return trainer.fit().return_value
    except ray.train.TrainingFailedError as failure:
        cause = root_cause(failure)
        if cause.is_lasting:
            return cause.line
        error = cause.to_error()
        if isinstance(error, WorkFailedError):
            times = f"more than training.max_failures={config.training.max_failures} times"
            error = WorkFailedError(f"the workers failed {times}, at last by: {cause.line}; see docs/operations.md")
        raise error from failure


class _StopsAtWhatLasts(ray.train.UserCallback):
    """Ends the training at a failure that would come again, where Ray would start the workers again."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        cause = root_cause(ray.train.WorkerGroupError("", worker_exceptions))
        if cause.is_lasting:
            raise ValueError(cause.line)


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
        from pipelines.evaluation.checkpoint_evaluator import register_best

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


def _results(summary: Mapping[str, Any]) -> str:
    """What a complete run has come to, in lines."""
    lines = [
        f"{summary['run']}: complete at step {summary['step']}  loss {summary['loss']:.4f}  trained "
        f"{duration(summary['train_seconds'])} at {summary['images_per_second']:.0f} images/s"
    ]
    evaluations = summary["evaluations"]
    if evaluations is not None and (best := evaluations["best_step"]) is not None:
        lines.append(f"best evaluation: mIoU {evaluations['scores'][best]:.2f} % at step {best}")
    return "\n".join([*lines, f"checkpoint: {summary['checkpoint']}"])
