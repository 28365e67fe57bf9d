"""What a sweep knows of one of its trials. The sweep writes such records, its report is drawn from them."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

TrialStatus = Literal["running", "finished", "stopped", "failed"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One trial: what it was given and what it reached."""

    name: str
    """Unique in the sweep, the same after every restart."""
    values: Mapping[str, Any]
    """What the sweep chose, by the flat dotted names of `ExperimentConfig` fields (`model.image.assignment`), without
    the seed. Trials of equal values differ in their seeds only."""
    seed: int
    status: TrialStatus = "running"
    """`stopped`: by the scheduler, before its last step."""
    stop_reason: str | None = None
    """One line for a trial that was stopped or that failed."""
    scores: Mapping[int, float] = dataclasses.field(default_factory=dict)
    """By training step (a rung): zero-shot mIoU in percent, the mean over the parts of the benchmark."""
    part_scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """mIoU in percent of each part of the benchmark, at the last rung."""
    run_id: str | None = None
    """Its MLflow run."""
    checkpoint: str | None = None
    """URI of its best checkpoint."""
    train_seconds: float | None = None

    @property
    def score(self) -> float | None:
        """mIoU in percent at the last rung it reached; None before the first."""
        return self.scores[max(self.scores)] if self.scores else None
