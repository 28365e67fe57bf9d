"""Pretraining: checks, the run folder, the training, and its results.

    groupvit pretrain debug --training.num-workers 2

The same command (same run name) resumes a run that was stopped or killed. The driver checks all that it can before work
starts. `RunFolder` keeps the checkpoints, not Ray, so a run resumes from any complete checkpoint, whichever process
wrote it.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

from pipelines.console.progress import duration
from pipelines.dataset.format import DatasetInfo
from pipelines.experiments.caption_mix import check_caption_mix
from pipelines.experiments.config import ExperimentConfig, validate
from pipelines.ingest.uncurated import open_source
from pipelines.local.folder_lock import only_one
from pipelines.runs.evaluations import EvaluationRecord, read_record
from pipelines.runs.folder import RunFolder
from pipelines.training.amending import record
from pipelines.training.job import Job, SweepLink, check_places, start_or_continue, with_absolute_paths
from pipelines.training.slice_size import choose_slice_size, with_recorded_slice_size


def pretrain(config: ExperimentConfig, sweep_link: SweepLink | None = None) -> dict[str, Any]:
    """Runs or resumes `config` to its last step. Prints the results, also those of a run that is already complete.

    Returns the summary that `--json` prints. `sweep_link` is given for a trial of a sweep.

    Raises ValueError for invalid arguments or data, before any work starts, and if too many images are corrupt.
    """
    validate(config)
    config = with_absolute_paths(config)
    datasets = open_datasets(config)
    if config.evaluation.every_n_steps is not None:
        from pipelines.evaluation.checkpoint_evaluator import check_evaluation  # imports MLflow; no worker needs it

        check_evaluation(config)
    run = RunFolder(f"{config.training.runs_folder}/{config.run_name}")
    check_places(run, config)
    with _slice_size_settled(config, run) as settled:
        job = start_or_continue(run, settled, datasets, sweep_link)
        first_step = run.latest_step()
        if first_step < config.training.num_steps or job.steps_to_evaluate():
            from pipelines.training.ray_train import train_on_ray  # Ray takes seconds to import

            # A trial takes no lock: its sweep holds one, and an earlier process of the trial may live on for a moment.
            with only_one(run.uri, "run") if sweep_link is None else nullcontext():
                record(run, job.new_amendments)
                train_on_ray(job, sweep_link)
    summary = _summary(job, first_step, read_record(run) if job.evaluates else None)
    print(_results(summary), flush=True)
    return summary


@contextmanager
def _slice_size_settled(config: ExperimentConfig, run: RunFolder) -> Iterator[ExperimentConfig]:
    """Yields the config with a number as slice size. If the run has none yet, it asks the cluster, which stays for the
    context."""
    if config.ingest.slice_size == "auto":
        config = with_recorded_slice_size(config, run.read_description())
    if config.ingest.slice_size != "auto":
        yield config
        return
    from pipelines.training.devices import worker_devices
    from pipelines.training.ray_train import check_machine, training_cluster

    check_machine(config)
    with training_cluster(config) as use_gpu:
        config, why = choose_slice_size(config, worker_devices(config, use_gpu=use_gpu))
        print(why, flush=True)
        yield config


def open_datasets(config: ExperimentConfig) -> list[DatasetInfo]:
    """Opens the data sets. Raises ValueError if one is missing or corrupted, or if they cannot fill a batch or have not
    the captions of `data.caption_mix`."""
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
    check_caption_mix(config.data.caption_mix, {name for info in datasets for name in info.caption_origins})
    total = sum(info.num_samples for info in datasets)
    if total < config.training.global_batch_size:
        raise ValueError(
            f"training.global_batch_size={config.training.global_batch_size} is more than the {total} samples of "
            "data.sources: the data cannot fill a batch; give a smaller batch or more data"
        )
    return datasets


def _summary(job: Job, first_step: int, evaluations: EvaluationRecord | None) -> dict[str, Any]:
    """Returns what `--json` prints of a complete run. A second call reads the same from the last checkpoint."""
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
    """Formats the results of a complete run as lines."""
    lines = [
        f"{summary['run']}: complete at step {summary['step']}  loss {summary['loss']:.4f}  trained "
        f"{duration(summary['train_seconds'])} at {summary['images_per_second']:.0f} images/s"
    ]
    evaluations = summary["evaluations"]
    if evaluations is not None and (best := evaluations["best_step"]) is not None:
        lines.append(f"best evaluation: mIoU {evaluations['scores'][best]:.2f} % at step {best}")
    return "\n".join([*lines, f"checkpoint: {summary['checkpoint']}"])
