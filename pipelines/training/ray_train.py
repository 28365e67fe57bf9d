"""The training itself: Ray, the workers, and recovery when a worker dies. worker.py holds the work of one worker."""

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import Any

import ray
import ray.train
from ray.exceptions import RayActorError
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer  # developer API: TorchTrainer imports torch

from pipelines.cluster.causes import root_cause
from pipelines.cluster.session import Terminal, check_room, ray_cluster, shown_lines, starts_here
from pipelines.console.stopping import run_stoppable
from pipelines.errors import Stopped
from pipelines.experiments.config import ExperimentConfig
from pipelines.tracking.gauges import ascii_name
from pipelines.tracking.runs import is_reached, make_run
from pipelines.training.data import RoundRobin, SlicesFromCheckpoint
from pipelines.training.failures import FailureLimit, StartLimit
from pipelines.training.job import Job, SweepLink
from pipelines.training.process_group import ProcessGroup
from pipelines.training.reservation import remove_placement_groups, take_over

# Timeout in seconds for starting a worker: on a busy machine, importing torch takes longer than Ray's minute.
os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "600")
# Pause in seconds between two looks for nodes that are about to go away. Ray's is 5.
os.environ.setdefault("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "1")

_SECONDS_FOR_ROOM = "10"
"""Longest wait for room for a group of several possible sizes."""
_SECONDS_TO_START = 60.0
"""Longest time for a group of several possible sizes to get room and processes; twice as long each time it failed."""
_MOST_LOST_CONTROLLERS = 4
"""Largest number of times in a row that Ray's controller is lost without a new checkpoint."""


def check_machine(config: ExperimentConfig) -> None:
    """Raises ValueError if Ray is to start on this machine, and it has no room for the workers."""
    if starts_here():
        _check_workers(config, {"CPU": os.cpu_count() or 1, "GPU": gpus_here(config)}, "this machine")


@contextmanager
def training_cluster(config: ExperimentConfig) -> Iterator[bool]:
    """Provides a Ray cluster. Yields whether the workers use GPUs. Raises ValueError if it has no room for them."""
    training, evaluation = config.training, config.evaluation
    # CPUs beside those of the workers: reading data and evaluating need CPUs on small machines, too.
    evaluates = evaluation.every_n_steps is not None
    others = 1 + (evaluation.num_workers * evaluation.cpus_per_worker if evaluates else 0)
    least_cpus = training.min_workers * training.cpus_per_worker + others
    with ray_cluster(least_cpus=least_cpus, show_logs=training.show_ray_logs):
        resources = ray.cluster_resources()
        if training.min_workers == training.max_workers:  # else reading shares the CPUs of workers if it has to
            resources["CPU"] = resources.get("CPU", 0) - others
        beside = f"{others} for the data and the evaluation" if evaluates else "one CPU for the data"
        yield _check_workers(config, resources, f"the Ray cluster, beside {beside},")


def train_on_ray(job: Job, sweep_link: SweepLink | None) -> None:
    """Trains the remaining steps, and evaluates checkpoints during and after the training."""
    check_machine(job.config)
    mlflow_answers = _ask_mlflow(job) if sweep_link is None else None  # a sweep has already asked
    with training_cluster(job.config) as use_gpu:
        if mlflow_answers is not None and job.identity is not None and mlflow_answers.result():
            make_run(job.identity)
        evaluator = job.start_evaluator(None if sweep_link is None else sweep_link.on_score)
        try:
            if job.run.latest_step() < job.config.training.num_steps:
                _fit(job, sweep_link, use_gpu=use_gpu)
        except BaseException:
            if evaluator is not None:
                evaluator.stop()
            raise
        if evaluator is not None:
            evaluator.finish()


def _ask_mlflow(job: Job) -> Future[bool] | None:
    """Asks whether MLflow answers while Ray starts: it takes seconds. Returns None if tracking is off.

    The future raises ValueError if MLflow refuses.
    """
    if job.identity is None:
        return None
    pool = ThreadPoolExecutor(1, thread_name_prefix="tracking")
    answers = pool.submit(is_reached, job.identity)
    pool.shutdown(wait=False)
    return answers


def trains_in_place(config: ExperimentConfig) -> bool:
    """Whether a trial of `config` trains in the process of Ray Tune, which then needs the resources of a worker.

    Ray Train uses six processes to start, restart and synchronise workers. They take over half of the CPU time of a
    tiny trial. A single worker has no others to wait for, and Tune restarts trials itself.
    """
    return config.training.max_workers == 1


def gpus_here(config: ExperimentConfig) -> int:
    """Returns the number of GPUs of this machine that the config may use."""
    if config.training.device == "cpu":
        return 0
    import torch

    return torch.cuda.device_count()


def uses_gpu(config: ExperimentConfig, available: float) -> bool:
    """Whether training workers use GPUs if `available` GPUs exist."""
    return config.training.device == "gpu" or (config.training.device == "auto" and available > 0)


def resources_per_worker(config: ExperimentConfig, *, use_gpu: bool) -> dict[str, float]:
    """Returns the resources that Ray reserves for a training worker."""
    training = config.training
    return {"CPU": float(training.cpus_per_worker)} | ({"GPU": training.gpus_per_worker} if use_gpu else {})


def _check_workers(config: ExperimentConfig, resources: Mapping[str, float], place: str) -> bool:
    """Whether the workers use GPUs. Raises ValueError if `place` lacks the resources for them."""
    use_gpu = uses_gpu(config, resources.get("GPU", 0))
    each = resources_per_worker(config, use_gpu=use_gpu)
    check_room("training.num_workers", config.training.min_workers, each, resources, place)
    return use_gpu


def _watches_nodes() -> bool:
    """Whether Ray Train watches for nodes that are about to go away."""
    return os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1") != "0"


def _train_worker(settings: dict[str, Any]) -> str | None:
    from pipelines.training.worker import train_worker  # imports torch, which a driver does not need

    return train_worker(settings)


def _fit(job: Job, sweep_link: SweepLink | None, *, use_gpu: bool) -> None:
    """Trains to the last step. Marks a failed run in MLflow. Raises ValueError for an error that the user must fix, and
    Stopped if a signal has stopped the run."""
    error = "the workers failed"
    try:
        if sweep_link is not None and trains_in_place(job.config):
            from pipelines.training.worker import train_here

            error = train_here(job)
        else:
            # The lines of a trial go to Ray's logs; the sweep prints a line of its own.
            with shown_lines(_when_silent(job.config)) if sweep_link is None else nullcontext() as terminal:
                error = _fit_on_workers(job, terminal, use_gpu=use_gpu)
    except Stopped:
        error = None
        raise
    finally:
        if error is not None and (tracker := job.open_tracker(system_metrics=False)) is not None:
            tracker.close("FAILED")
    if error is not None:
        raise ValueError(error)


def _when_silent(config: ExperimentConfig) -> str:
    """Returns the line for a time without a word of a worker. Each says something every 15 seconds."""
    training = config.training
    return (
        f"{config.run_name}: no worker runs: Ray starts them, or waits for room for at least {training.min_workers} "
        f"with {training.cpus_per_worker:g} CPUs each (`ray status` on the head)"
    )


def _fit_on_workers(job: Job, terminal: Terminal | None, *, use_gpu: bool) -> str | None:
    """Trains on workers of Ray Train. Returns an error that the user must fix, or None."""
    try:
        if terminal is None:  # a trial: Tune starts it again if the controller is lost
            return _start_trainer(job, None, 0, use_gpu=use_gpu).fit().return_value
        result, stopped_by = run_stoppable(
            lambda: _fit_past_lost_controllers(job, terminal, use_gpu=use_gpu), terminal.stop
        )
    except ray.train.TrainingFailedError as failure:
        cause = root_cause(failure)
        if cause.is_lasting:
            return cause.line
        raise cause.to_error() from failure
    if stopped_by is not None and (step := job.run.latest_step()) < job.config.training.num_steps:
        kept = f"after step {step}, with a checkpoint" if step else "before its first step"
        raise Stopped(f"{job.config.run_name}: stopped {kept}", 128 + stopped_by)
    return result.return_value


def _fit_past_lost_controllers(job: Job, terminal: Terminal, *, use_gpu: bool) -> ray.train.Result:
    """Trains to the end. If Ray's controller, which starts the workers, ends itself or is killed, another goes on."""
    num_lost, last_step = 0, -1
    while True:
        try:
            return _start_trainer(job, terminal, num_lost, use_gpu=use_gpu).fit()
        except RayActorError:
            step = job.run.latest_step()
            num_lost = num_lost + 1 if step == last_step else 1
            last_step = step
            if num_lost > _MOST_LOST_CONTROLLERS or not ray.is_initialized():
                raise
            remove_placement_groups()


def _start_trainer(job: Job, terminal: Terminal | None, num_lost: int, *, use_gpu: bool) -> DataParallelTrainer:
    """Returns a trainer after `num_lost` controllers were lost in a row. It is the only one of the run."""
    config, training = job.config, job.config.training
    least, most = training.min_workers, training.max_workers
    callbacks: list[Any] = [FailureLimit(training.max_failures)]
    if least < most:  # Ray knows late which nodes are gone: if there is no room, it has to count them again
        os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = _SECONDS_FOR_ROOM
        say = print if terminal is None else terminal.put
        callbacks.append(StartLimit(_SECONDS_TO_START * 2**num_lost, say))
    trainer = DataParallelTrainer(
        _train_worker,
        train_loop_config={"job": job, "terminal": terminal, "heeds_drains": _watches_nodes()},
        backend_config=ProcessGroup("nccl" if use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=(least, most) if least < most else most,
            elastic_resize_monitor_interval_s=training.resize_every_n_seconds,
            use_gpu=use_gpu,
            resources_per_worker=resources_per_worker(config, use_gpu=use_gpu),
        ),
        run_config=ray.train.RunConfig(
            # Ray writes almost nothing there. If it needs another name for the run, its folder is inside the run's.
            name=(name := ascii_name(config.run_name)),
            storage_path=config.training.runs_folder if name == config.run_name else job.run.uri,
            failure_config=ray.train.FailureConfig(max_failures=-1),  # FailureLimit counts them
            callbacks=callbacks,
        ),
        # A function, not a data set: Ray calls it for every group of workers it starts, so that the data start at the
        # newest checkpoint.
        datasets={"train": SlicesFromCheckpoint(job, terminal)},
        dataset_config=RoundRobin(),
    )
    take_over(job.run, trainer.train_run_context.run_id)
    return trainer
