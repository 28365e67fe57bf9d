"""Record of one trial of a sweep. The sweep writes the records, and its report reads them."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

TrialStatus = Literal["running", "finished", "stopped", "failed"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One trial: its values and results."""

    name: str
    """Unique in the sweep, and the same after every restart."""
    values: Mapping[str, Any]
    """Values the sweep chose, by flat dotted names of `ExperimentConfig` fields (`model.image.assignment`), without the
    seed. Trials with equal values differ in their seeds only."""
    seed: int
    status: TrialStatus = "running"
    """`stopped`: ended before its last step, by the scheduler or the budget."""
    stop_reason: str | None = None
    """Why the trial was stopped or failed, in one line."""
    scores: Mapping[int, float] = dataclasses.field(default_factory=dict)
    """Zero-shot mIoU in percent by training step (a rung): the mean over the parts of the benchmark."""
    part_scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """mIoU in percent of each part of the benchmark, at the last rung."""
    run_id: str | None = None
    """ID of its MLflow run."""
    checkpoint: str | None = None
    """URI of its best checkpoint."""
    train_seconds: float | None = None

    @property
    def score(self) -> float | None:
        """mIoU in percent at the last rung reached; None before the first."""
        return self.scores[max(self.scores)] if self.scores else None
