"""The evaluations of a run, in RUNS/NAME/evaluations.json: which checkpoints are due, which are done, which is best.

The driver's evaluator writes the file. The training loop reads it to find the checkpoints that it must not delete yet.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines import documents, storage
from pipelines.documents import Count, Finite
from pipelines.runs.folder import RunFolder

_FILE = "evaluations.json"


@dataclass(frozen=True, kw_only=True)
class EvaluationRecord:
    """Results of a run's evaluations."""

    scores: Mapping[Count, Finite] = field(default_factory=dict)
    """mIoU in percent by step: the mean over the parts of the benchmark."""
    part_scores: Mapping[Count, Mapping[str, float]] = field(default_factory=dict)
    """mIoU in percent of each part, by step."""
    metrics: Mapping[Count, dict[str, Any]] = field(default_factory=dict)
    """Record for MLflow by step, as made by the tracker's `metrics_record`."""
    failures: Mapping[Count, str] = field(default_factory=dict)
    """Reason by step for a checkpoint that could not be evaluated."""

    @property
    def best_step(self) -> int | None:
        """Step of the highest score, the first one if several are equal. None before the first evaluation."""
        return max(sorted(self.scores), key=lambda step: self.scores[step], default=None)

    def summary(self) -> dict[str, Any]:
        """Returns the results for people, as JSON-safe values."""
        parts = {step: dict(scores) for step, scores in self.part_scores.items()}
        return {
            "best_step": self.best_step,
            "scores": dict(self.scores),
            "part_scores": parts,
            "failures": dict(self.failures),
        }

    def is_done(self, step: int) -> bool:
        return step in self.scores or step in self.failures

    def kept_steps(self, steps: Iterable[int], every_n_steps: int | None, num_steps: int) -> frozenset[int]:
        """Returns the steps of the checkpoints to keep: the best one, and those that wait for their evaluation."""
        waiting = {step for step in steps if is_due(step, every_n_steps, num_steps) and not self.is_done(step)}
        return frozenset(waiting if self.best_step is None else waiting | {self.best_step})


def is_due(step: int, every_n_steps: int | None, num_steps: int) -> bool:
    """Whether the checkpoint of a step must be evaluated: every n steps, and after the last step."""
    return every_n_steps is not None and (step % every_n_steps == 0 or step == num_steps)


def read_record(run: RunFolder) -> EvaluationRecord:
    """Reads the record of a run. It is empty before the first evaluation."""
    uri = storage.join(run.uri, _FILE)
    try:
        return documents.read(uri, EvaluationRecord, "delete it, and the checkpoints are evaluated again")
    except FileNotFoundError:
        return EvaluationRecord()


def missing_steps(run: RunFolder, every_n_steps: int | None, num_steps: int) -> list[int]:
    """Returns the steps of checkpoints that are due and not evaluated yet, in ascending order."""
    record = read_record(run)
    due = [step for step in run.checkpoint_steps() if is_due(step, every_n_steps, num_steps)]
    return [step for step in due if not record.is_done(step)]


def write_record(run: RunFolder, record: EvaluationRecord) -> None:
    """Replaces the record of a run."""
    content = record.summary() | {"metrics": dict(record.metrics)}
    storage.write_bytes(storage.join(run.uri, _FILE), (json.dumps(content, indent=2) + "\n").encode())
