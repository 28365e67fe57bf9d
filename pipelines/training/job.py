"""A pretraining job: its run folder, its MLflow identity, and the provenance stored with each checkpoint."""

import dataclasses
import logging
import os
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groupvit.config import flatten, to_dict
from pipelines.dataset.format import DatasetInfo
from pipelines.experiments.amendments import LEARNING_RATE, WEIGHTS, as_text
from pipelines.experiments.config import ExperimentConfig
from pipelines.experiments.fixed import amended, before_there_was_a_choice, fixes_the_result, settled
from pipelines.local.home import cache_folder
from pipelines.local.writable import check_writable
from pipelines.provenance import code_version, redact, redact_values
from pipelines.runs.contents import RecordedAmendment
from pipelines.runs.damage import newest_whole_step
from pipelines.runs.evaluations import missing_steps, read_record
from pipelines.runs.folder import JOB_ID, UNSENT_METRICS, RunFolder, recorded_precision
from pipelines.storage import absolute
from pipelines.tracking.places import artifacts_in, check_database, database_path, database_uri
from pipelines.tracking.runs import RunIdentity, TrackedDataset
from pipelines.tracking.tracker import Tracker
from pipelines.training.amending import new_amendments

if TYPE_CHECKING:
    from pipelines.evaluation.checkpoint_evaluator import CheckpointEvaluator


logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """Inputs that the driver passes to the training workers."""

    config: ExperimentConfig
    run: RunFolder
    identity: RunIdentity | None
    """MLflow identity of the run. None: tracking is off."""
    checkpoint_state: Mapping[str, Any]
    new_amendments: Sequence[RecordedAmendment] = ()
    """Amendments of the config that run.json does not have yet."""

    @property
    def evaluates(self) -> bool:
        """Whether checkpoints are evaluated while the run trains."""
        return self.config.evaluation.every_n_steps is not None

    def steps_to_evaluate(self) -> list[int]:
        """Returns the steps of existing checkpoints that are due for evaluation and not evaluated yet."""
        return missing_steps(self.run, self.config.evaluation.every_n_steps, self.config.training.num_steps)

    @property
    def spool_folder(self) -> Path:
        if self.run.is_local:
            return Path(self.run.uri) / "tracking"
        return cache_folder() / self.run.uri.replace("://", "-").replace("/", "-") / "tracking"

    def start_evaluator(self, on_score: Callable[[int, float], None] | None = None) -> "CheckpointEvaluator | None":
        """Starts evaluating checkpoints while the run trains. Returns None if the run has no such evaluation."""
        if not self.evaluates:
            return None
        from pipelines.evaluation.checkpoint_evaluator import CheckpointEvaluator  # no worker needs it

        results = self.spool_folder.with_name("evaluation")
        tracker = self.open_evaluation_tracker()
        return CheckpointEvaluator(
            self.config, self.run, results, tracker, lambda line: print(line, flush=True), on_score
        )

    def open_evaluation_tracker(self) -> Tracker | None:
        """Opens the tracker for the evaluator's results. It waits until a training worker has created the MLflow run.

        It first sends the metrics of all recorded evaluations again. An earlier process may have been lost with its
        machine before it sent them. Sending them twice is harmless.
        """
        if self.identity is None:
            return None
        identity = dataclasses.replace(self.identity, makes_run=False)
        tracker = Tracker(identity, self.spool_folder.with_name("tracking-evaluation"))
        metrics = read_record(self.run).metrics
        tracker.log_records([metrics[step] for step in sorted(metrics)])
        return tracker

    def open_tracker(self, *, system_metrics: bool) -> Tracker | None:
        """Opens the tracker of the job's run. It first sends the metrics that the newest checkpoint lists as unsent."""
        if self.identity is None:
            return None
        cadence = self.config.tracking.system_metrics_every_n_seconds
        tracker = Tracker(self.identity, self.spool_folder, cadence if system_metrics else None)
        try:
            if step := self.run.latest_step():
                tracker.log_records(self.run.read_state(step).get(UNSENT_METRICS, ()))
        except (OSError, ValueError) as error:  # training reads this state, too, and reports the error
            logger.warning("tracking: metrics kept with the newest checkpoint cannot be read: %s", error)
        return tracker


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepLink:
    """Links a trial's run to its sweep: job id, MLflow tags, score callback."""

    job_id: str
    """Job id of the trial, the same at every start. It finds the MLflow run even if the runs folder is lost."""
    tags: Mapping[str, str]
    """Tags of the trial's MLflow run."""
    on_score: Callable[[int, float], None] | None = None
    """Called with the step and the mIoU in percent of every evaluation, in another thread than the caller's."""


def with_absolute_paths(config: ExperimentConfig) -> ExperimentConfig:
    """Makes relative paths absolute, because workers run in another directory, and sets the default tracking URI."""
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
    """Raises ValueError if an incomplete run cannot write to its folder, MLflow's database or `record_samples`."""
    if run.latest_step() < config.training.num_steps:
        check_writable(run.uri, "training.runs_folder")
        check_database(config.tracking.uri, "tracking.uri")
        if config.training.record_samples is not None:
            check_writable(config.training.record_samples, "training.record_samples")


def start_or_continue(
    run: RunFolder, config: ExperimentConfig, datasets: Sequence[DatasetInfo], sweep_link: SweepLink | None = None
) -> Job:
    """Returns the job of a run, with the id from its first start.

    Moves the newest checkpoint away if it is damaged. Raises ValueError if the run was started with another config or
    other data, or if its newest checkpoint is of another run.
    """
    description = run.read_description()
    config = settled(config, None if description is None else description["fixed"])
    fixed = fixes_the_result(config) | {"data.digests": [info.digest for info in datasets]}
    if description is None:
        description = {
            JOB_ID: uuid.uuid4().hex if sweep_link is None else sweep_link.job_id,
            "fixed": fixed,
            "config": redact_values(to_dict(config)),
            "code_version": code_version(),
        }
        run.write_description(description)
    added_since = before_there_was_a_choice()
    for name, value in fixed.items():
        before = description["fixed"].get(name, added_since.get(name))
        if name == "training.precision":  # compare with what `auto` chose at the first start; `auto` keeps that choice
            before = recorded_precision(description) or value
            value = before if value == "auto" else value
        if before != value:
            advice = "change it from a step on with --amend, " if name in (WEIGHTS, LEARNING_RATE) else ""
            raise ValueError(
                f"{name}={value}, but run {config.run_name!r} in {config.training.runs_folder} was started with "
                f"{_shown(before)}: continue it with that value, {advice}or give another --training.run-name"
            )
    newest_whole_step(run, lambda line: print(line, file=sys.stderr, flush=True))
    recorded = description.get("amendments", [])
    new = new_amendments(config, run, recorded)
    config = amended(config, [each["text"] for each in (*recorded, *new)])
    return Job(
        config=config,
        run=run,
        identity=_identity(
            config,
            datasets,
            description[JOB_ID],
            {
                **({} if sweep_link is None else sweep_link.tags),
                **({"amendments": as_text([*recorded, *new])} if config.amendments else {}),
            },
        ),
        new_amendments=new,
        checkpoint_state={
            JOB_ID: description[JOB_ID],
            "code_version": code_version(),
            "datasets": [
                {"uri": redact(info.uri), "digest": info.digest, "num_samples": info.num_samples} for info in datasets
            ],
        },
    )


def _shown(value: Any) -> str:
    """Returns a value of run.json as text in one line."""
    text = str(value) if str(value).isprintable() else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


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
        params={name: value for name, value in flatten(to_dict(config)).items() if name != "amendments"},  # a tag
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
