"""Which checkpoints of a run are to be evaluated, which were, and which was best: RUNS/NAME/evaluations.json.

The driver's evaluator writes it; the training loop reads it to know which checkpoints must not be deleted yet.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines import storage
from pipelines.runs.folder import RunFolder

_FILE = "evaluations.json"


@dataclass(frozen=True, kw_only=True)
class EvaluationRecord:
    """What is known of a run's evaluations."""

    scores: Mapping[int, float] = field(default_factory=dict)
    """By step: mIoU in percent, the mean over the parts of the benchmark."""
    part_scores: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    """By step: mIoU in percent of each part."""
    metrics: Mapping[int, dict[str, Any]] = field(default_factory=dict)
    """By step: what MLflow is sent, as `metrics_record` of the tracker makes it."""
    failures: Mapping[int, str] = field(default_factory=dict)
    """By step: why it could not be evaluated."""

    @property
    def best_step(self) -> int | None:
        """Step of the highest score, the first of equals; None before the first evaluation."""
        return max(sorted(self.scores), key=lambda step: self.scores[step], default=None)

    def summary(self) -> dict[str, Any]:
        """JSON-safe: for people."""
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
        """Of the run's checkpoints, those that must stay: the best one, and those that wait to be evaluated."""
        waiting = {step for step in steps if is_due(step, every_n_steps, num_steps) and not self.is_done(step)}
        return frozenset(waiting if self.best_step is None else waiting | {self.best_step})


def is_due(step: int, every_n_steps: int | None, num_steps: int) -> bool:
    """Whether the checkpoint of a step is to be evaluated: every n steps, and the last one."""
    return every_n_steps is not None and (step % every_n_steps == 0 or step == num_steps)


def read_record(run: RunFolder) -> EvaluationRecord:
    """The record of a run; an empty one before the first evaluation."""
    try:
        content: dict[str, Any] = json.loads(storage.read_bytes(storage.join(run.uri, _FILE)))
    except FileNotFoundError:
        return EvaluationRecord()
    return EvaluationRecord(
        scores={int(step): score for step, score in content["scores"].items()},
        part_scores={int(step): scores for step, scores in content.get("part_scores", {}).items()},
        metrics={int(step): record for step, record in content.get("metrics", {}).items()},
        failures={int(step): reason for step, reason in content["failures"].items()},
    )


def missing_steps(run: RunFolder, every_n_steps: int | None, num_steps: int) -> list[int]:
    """Steps of the run's checkpoints that are due and not evaluated yet, rising."""
    record = read_record(run)
    due = [step for step in run.checkpoint_steps() if is_due(step, every_n_steps, num_steps)]
    return [step for step in due if not record.is_done(step)]


def write_record(run: RunFolder, record: EvaluationRecord) -> None:
    """Replaces the record of a run."""
    content = record.summary() | {"metrics": dict(record.metrics)}
    storage.write_bytes(storage.join(run.uri, _FILE), (json.dumps(content, indent=2) + "\n").encode())
