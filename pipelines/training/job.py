"""A pretraining job: its run's folder, who it is in MLflow, what is kept with its checkpoints."""

import dataclasses
import logging
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groupvit.config import flatten, to_dict
from pipelines.dataset.format import DatasetInfo
from pipelines.experiments.config import ExperimentConfig, fixes_the_result
from pipelines.local.home import cache_folder
from pipelines.local.writable import check_writable
from pipelines.provenance import code_version
from pipelines.runs.evaluations import missing_steps, read_record
from pipelines.runs.folder import UNSENT_METRICS, RunFolder, recorded_precision
from pipelines.storage import absolute
from pipelines.tracking.places import artifacts_in, check_database, database_path, database_uri
from pipelines.tracking.runs import RunIdentity, TrackedDataset
from pipelines.tracking.tracker import Tracker

if TYPE_CHECKING:
    from pipelines.evaluation.checkpoint_evaluator import CheckpointEvaluator


logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What the driver hands to the training workers."""

    config: ExperimentConfig
    run: RunFolder
    identity: RunIdentity | None
    """None: tracking is off."""
    checkpoint_state: Mapping[str, Any]

    @property
    def evaluates(self) -> bool:
        """Whether checkpoints are evaluated beside the training."""
        return self.config.evaluation.every_n_steps is not None

    def steps_to_evaluate(self) -> list[int]:
        """Steps of checkpoints that are there, due, and not evaluated yet."""
        return missing_steps(self.run, self.config.evaluation.every_n_steps, self.config.training.num_steps)

    @property
    def spool_folder(self) -> Path:
        if self.run.is_local:
            return Path(self.run.uri) / "tracking"
        return cache_folder() / self.run.uri.replace("://", "-").replace("/", "-") / "tracking"

    def start_evaluator(self, on_score: Callable[[int, float], None] | None = None) -> "CheckpointEvaluator | None":
        """What evaluates checkpoints beside the training; None if the run has no such evaluation."""
        if not self.evaluates:
            return None
        from pipelines.evaluation.checkpoint_evaluator import CheckpointEvaluator  # what no worker needs

        results = self.spool_folder.with_name("evaluation")
        tracker = self.open_evaluation_tracker()
        return CheckpointEvaluator(
            self.config, self.run, results, tracker, lambda line: print(line, flush=True), on_score
        )

    def open_evaluation_tracker(self) -> Tracker | None:
        """What sends the evaluator's results; it waits for the run that a training worker makes.

        It first sends the metrics of all evaluations on record again, which is harmless: an earlier process may have
        been lost with the machine on which they waited.
        """
        if self.identity is None:
            return None
        identity = dataclasses.replace(self.identity, makes_run=False)
        tracker = Tracker(identity, self.spool_folder.with_name("tracking-evaluation"))
        metrics = read_record(self.run).metrics
        tracker.send_again([metrics[step] for step in sorted(metrics)])
        return tracker

    def open_tracker(self, *, system_metrics: bool) -> Tracker | None:
        """The writer of the job's run, which first sends what the newest checkpoint says was not sent."""
        if self.identity is None:
            return None
        cadence = self.config.tracking.system_metrics_every_n_seconds
        tracker = Tracker(self.identity, self.spool_folder, cadence if system_metrics else None)
        try:
            if step := self.run.latest_step():
                tracker.send_again(self.run.read_state(step).get(UNSENT_METRICS, ()))
        except (OSError, ValueError) as error:  # the training, which needs them, says more of it
            logger.warning("tracking: metrics kept with the newest checkpoint cannot be read: %s", error)
        return tracker


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ties:
    """What ties a run to the sweep that it is a trial of."""

    job_id: str
    """Of the trial, at every start; the runs folder may be lost and the MLflow run is found all the same."""
    tags: Mapping[str, str]
    """Of its MLflow run."""
    on_score: Callable[[int, float], None] | None = None
    """Told step and mIoU in percent of every evaluation, in another thread than the caller's."""


def with_absolute_paths(config: ExperimentConfig) -> ExperimentConfig:
    """Workers run in another directory, so what is relative is made absolute; the default tracking URI is filled in."""
    runs_folder = absolute(config.training.runs_folder)
    record = config.training.record_samples
    evaluation = config.evaluation
    uri = config.tracking.uri
    if uri == "default":
        database = runs_folder if "://" not in runs_folder else os.getcwd()
        uri = os.environ.get("MLFLOW_TRACKING_URI") or database_uri(f"{database}/mlflow.db")
    if uri is not None and "?" not in uri and (path := database_path(uri)) is not None:
        uri = database_uri(path)
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, sources=tuple(absolute(source) for source in config.data.sources)),
        training=dataclasses.replace(
            config.training, runs_folder=runs_folder, record_samples=None if record is None else absolute(record)
        ),
        tracking=dataclasses.replace(config.tracking, uri=uri),
        evaluation=dataclasses.replace(
            evaluation,
            root=absolute(evaluation.root) if evaluation.root else "",
            calibration=None if evaluation.calibration is None else absolute(evaluation.calibration),
        ),
    )


def check_places(run: RunFolder, config: ExperimentConfig) -> None:
    """ValueError if a run that is not complete could not write its folder, or MLflow's database."""
    if run.latest_step() < config.training.num_steps:
        check_writable(run.uri, "training.runs_folder")
        check_database(config.tracking.uri, "tracking.uri")
        if config.training.record_samples is not None:
            check_writable(config.training.record_samples, "training.record_samples")


def start_or_continue(
    run: RunFolder, config: ExperimentConfig, datasets: Sequence[DatasetInfo], ties: Ties | None = None
) -> Job:
    """The job of a run, with the id that it got at its first start. ValueError if the run was started with another
    config or other data."""
    fixed = fixes_the_result(config) | {"data.digests": [info.digest for info in datasets]}
    description = run.read_description()
    if description is None:
        description = {
            "job_id": uuid.uuid4().hex if ties is None else ties.job_id,
            "fixed": fixed,
            "config": to_dict(config),
            "code_version": code_version(),
        }
        run.write_description(description)
    added_since = fixes_the_result(ExperimentConfig(name=config.name))  # fields that the run's first version had not
    for name, value in fixed.items():
        before = description["fixed"].get(name, added_since.get(name))
        if name == "training.precision":  # what `auto` came to; and `auto` goes on with whatever that was
            before = recorded_precision(description) or value
            value = before if value == "auto" else value
        if before != value:
            raise ValueError(
                f"{name}={value}, but run {config.run_name!r} in {config.training.runs_folder} was started with "
                f"{before}: continue it with that value, or give another --training.run-name"
            )
    return Job(
        config=config,
        run=run,
        identity=_identity(config, datasets, description["job_id"], {} if ties is None else ties.tags),
        checkpoint_state={
            "code_version": code_version(),
            "datasets": [
                {"uri": info.uri, "digest": info.digest, "num_samples": info.num_samples} for info in datasets
            ],
        },
    )


def _identity(
    config: ExperimentConfig, datasets: Sequence[DatasetInfo], job_id: str, tags: Mapping[str, str]
) -> RunIdentity | None:
    if config.tracking.uri is None:
        return None
    names = config.data.names or [info.uri.rstrip("/").rpartition("/")[2] for info in datasets]
    return RunIdentity(
        uri=config.tracking.uri,
        experiment=config.tracking.experiment,
        run_name=config.run_name,
        job_id=job_id,
        artifact_location=artifacts_in(config.training.runs_folder)
        if config.tracking.uri.startswith("sqlite")
        else None,
        params=flatten(to_dict(config)),
        tags={"mlflow.source.git.commit": code_version(), "mlflow.source.name": "groupvit pretrain", **tags},
        datasets=tuple(
            TrackedDataset(
                name=name,
                uri=info.uri,
                digest=info.digest,
                num_samples=info.num_samples,
            )
            for name, info in zip(names, datasets, strict=True)
        ),
    )
