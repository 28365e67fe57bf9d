"""Evaluates the checkpoints of a run while it trains, on separate workers. The training never waits for it.

    groupvit pretrain demo --evaluate-every-n-steps 500 --evaluation.root data/stamps/validation

A thread of the driver looks for checkpoints that are due. Ray actors beside the training workers score each one. The
thread sends metrics, tables and pictures to the MLflow run at the checkpoint's step. The run's folder records finished
evaluations, so a run that was killed resumes with the missing ones. The rest is evaluated after the training.
"""

import dataclasses
import statistics
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.benchmarks.catalogue import BENCHMARKS
from pipelines.cluster.causes import root_cause
from pipelines.evaluation.config import EvaluateConfig
from pipelines.experiments.config import ExperimentConfig
from pipelines.experiments.scoring import ScoringConfig
from pipelines.runs.evaluations import EvaluationRecord, missing_steps, read_record, write_record
from pipelines.runs.folder import RunFolder
from pipelines.tracking.gauges import EvaluationGauges
from pipelines.tracking.tracker import Tracker, metrics_record

BEST = "best"
"""Alias of the registered version with the highest mIoU."""
_LOOK_EVERY_SECONDS = 2.0


def check_evaluation(config: ExperimentConfig) -> None:
    """Raises ValueError if the evaluation in the config cannot run: its options are invalid, or data is missing."""
    try:
        asked = _evaluate_config(config, checkpoint="", out="")
        BENCHMARKS[asked.benchmark](asked.root)
        if asked.calibration is not None:
            BENCHMARKS["scenes"](asked.calibration)
    except ValueError as error:
        raise ValueError(f"evaluation: {error}") from None


class CheckpointEvaluator:
    """The thread that evaluates. `finish` waits until every checkpoint that is due has been evaluated."""

    def __init__(
        self,
        config: ExperimentConfig,
        run: RunFolder,
        folder: Path,
        tracker: Tracker | None,
        say: Callable[[str], None],
        on_score: Callable[[int, float], None] | None = None,
    ) -> None:
        """Starts the thread. `folder`, on this machine, receives the results of each step.

        The thread calls `on_score` with the step and the mIoU of each new evaluation, and waits for it to return. The
        training does not wait.
        """
        self._config, self._run, self._folder, self._tracker, self._say = config, run, folder, tracker, say
        self._on_score = on_score
        self._training_ended, self._stopped = threading.Event(), threading.Event()
        self._failed_once: set[int] = set()
        self._error: BaseException | None = None
        """What ended the thread early."""
        self._gauges = EvaluationGauges(config.run_name)
        self._thread = threading.Thread(target=self._work, name="evaluation", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Evaluates the remaining checkpoints after the last step, and deletes those that are no longer needed."""
        self._training_ended.set()
        self._thread.join()
        if self._tracker is not None:
            self._tracker.close(None)
        if self._error is not None:
            raise self._error
        keep = self._config.training.keep_checkpoints
        if keep is not None:
            every, num_steps = self._config.evaluation.every_n_steps, self._config.training.num_steps
            kept = read_record(self._run).kept_steps(self._run.checkpoint_steps(), every, num_steps)
            self._run.delete_old_checkpoints(keep, kept)

    def stop(self) -> None:
        """Stops. The next start of the run evaluates the remaining checkpoints."""
        self._stopped.set()
        self._training_ended.set()

    def _work(self) -> None:
        try:
            while not self._stopped.is_set():
                ended = self._training_ended.is_set()  # read before looking: no checkpoint comes after it
                try:
                    if step := next(iter(self._missing()), None):
                        self._evaluate(step)
                    elif ended:
                        return
                    else:
                        self._training_ended.wait(_LOOK_EVERY_SECONDS)
                except OSError as error:  # the store is away: the training waits for it, too
                    self._say(f"evaluation: {error}; trying again")
                    self._stopped.wait(_LOOK_EVERY_SECONDS)
        except BaseException as error:  # `finish` raises it
            self._error = error

    def _missing(self) -> list[int]:
        return missing_steps(self._run, self._config.evaluation.every_n_steps, self._config.training.num_steps)

    def _evaluate(self, step: int) -> None:
        from pipelines.evaluation.evaluate import evaluate  # imports torch: the driver needs it only here
        from pipelines.evaluation.report import image_counts

        out = self._folder / f"step-{step:08d}"
        asked = _evaluate_config(self._config, checkpoint=self._run.checkpoint_uri(step), out=str(out))
        try:
            summary = evaluate(asked, show=False)
        except Exception as error:  # a failed evaluation is recorded and must not end the training
            if self._stopped.is_set():
                return
            cause = root_cause(error)
            if step not in self._failed_once and not cause.is_lasting:  # a node may have been lost
                self._failed_once.add(step)
                return
            reason = cause.line
            self._say(f"evaluation of step {step} failed: {reason}")
            record = read_record(self._run)
            write_record(self._run, dataclasses.replace(record, failures={**record.failures, step: reason}))
            return
        scores = {name: summary["metrics"][f"{name}/miou"] for name in summary["class_iou"]}
        named = {f"evaluation/{name}": value for name, value in summary["metrics"].items()}
        named |= {f"evaluation/{name}": count for name, count in image_counts(summary).items()}
        metrics = metrics_record(named | {"evaluation/miou": statistics.fmean(scores.values())}, step)
        if self._tracker is not None:
            self._tracker.log_records([metrics])
            self._tracker.log_artifact(out, f"evaluation/{out.name}")
            for picture in sorted(out.glob("examples_*.png")):
                self._tracker.log_picture(picture, f"evaluation {picture.stem.replace('_', ' ')}", step)
        record = read_record(self._run)
        scored = {**record.scores, step: statistics.fmean(scores.values())}
        record = dataclasses.replace(
            record,
            scores=scored,
            part_scores={**record.part_scores, step: scores},
            metrics={**record.metrics, step: metrics},
        )
        write_record(self._run, record)
        self._gauges.set(step, miou=scored[step], best_miou=max(scored.values()))
        best = ", the best so far" if max(scored.values()) == scored[step] else ""
        shown = "  ".join(f"{name} {value:.2f} %" for name, value in scores.items())
        self._say(f"evaluated step {step}: mIoU {shown}{best} ({summary['seconds']:.0f} s)")
        if self._on_score is not None:
            self._on_score(step, scored[step])


def register_best(
    config: ExperimentConfig, run: RunFolder, record: EvaluationRecord, run_id: str, tracking_uri: str
) -> str | None:
    """Registers the run's best checkpoint as a version of its model in MLflow.

    The version gets the alias `best`, unless the version that has the alias scored higher. Returns the URI of the
    version, or None if there is nothing to register. Raises ValueError if MLflow refuses or cannot be reached.
    """
    from pipelines.models.registry import log_model_to_mlflow, registered_miou  # imports torch and MLflow's models

    step, name = record.best_step, config.evaluation.registered_model
    if step is None or name is None:
        return None
    name = config.name if name == "default" else name
    score, highest = record.scores[step], registered_miou(name, BEST, tracking_uri)
    with run.local_checkpoint(step) as folder:
        return log_model_to_mlflow(
            folder,
            run_id=run_id,
            tracking_uri=tracking_uri,
            registered_name=name,
            alias=BEST if highest is None or round(score, 2) >= highest else None,
            step=step,
            metrics={"miou": score},
        )


def _evaluate_config(config: ExperimentConfig, *, checkpoint: str, out: str) -> EvaluateConfig:
    evaluation: dict[str, Any] = {
        field.name: getattr(config.evaluation, field.name) for field in dataclasses.fields(ScoringConfig)
    }
    return EvaluateConfig(checkpoint=checkpoint, out=out, save_predictions=False, **evaluation)
