"""Configuration of a sweep: its scheduler, searcher, budget and rungs. A space (catalogue.py) says what varies, and
`base` is the experiment. Every flag of that experiment is accepted, too."""

import dataclasses
import re
from typing import Literal

from pipelines.errors import require_at_least
from pipelines.local.folder_names import check_folder_name

Scheduler = Literal["none", "asha", "pbt"]
Searcher = Literal["grid", "random", "optuna"]

DEMO_STEPS = 600
"""Steps of a trial on the demo. Its own 2,200 are for one run; with 600, 12 trials take less than an hour on 2
cores."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """How to search the space."""

    base: str = "demo"
    """Experiment that the space varies. Every flag of `groupvit pretrain BASE` is accepted here, too."""
    name: str | None = None
    """Name of the sweep, of its folder in training.runs-folder, and of its run in MLflow. The same command with the
    same name resumes a sweep that was stopped or killed. None: sweep-SPACE."""
    scheduler: Scheduler = "none"
    """Scheduler, which may end trials early. `asha`: at each rung, trials outside the best 1 / reduction-factor of all
    that reached it so far are stopped. `pbt`: at each rung, a trial in the lowest quarter takes the checkpoint of one
    in the highest quarter, and continues with changed rates and weights. `none`: every trial runs to its last step."""
    searcher: Searcher | None = None
    """How to choose the next configuration: every point of a `grid`, `random` draws, or `optuna` (TPE), which learns
    from the scores so far. None: grid if the space has no range, else random."""
    budget: str | None = None
    """Number of trials, like 20, or hours, like 3h or 0.5h, over all restarts. When the hours are used up, no trial
    starts, and running trials stop at their next rung. None: the whole grid."""
    max_concurrent: int = 1
    """Number of trials at a time. Each takes its training workers, its evaluation workers, and a CPU for its data."""
    rung_every_n_steps: int | None = None
    """Number of steps between rungs. At a rung, the checkpoint is evaluated (zero-shot mIoU), and the scheduler
    decides. None: evaluation.every-n-steps if given, else four rungs."""
    reduction_factor: int = 3
    """Of asha: one of this many trials continues after a rung, and each rung that decides has this many times the steps
    of the one before."""
    num_seeds: int | None = None
    """Number of seeds (0, 1, ...) of each configuration. None: that of the space (3 for the paper's tables)."""
    num_steps: int | None = None
    """Number of steps of a trial; the warm-up is scaled with it. None: training.num-steps, or 600 on the demo."""
    max_failures: int = 3
    """Number of times a trial is restarted, from its newest checkpoint, after its node was lost."""
    seed: int = 0
    """Seed of the random draws from the space."""

    def __post_init__(self) -> None:
        require_at_least(self, max_concurrent=1, rung_every_n_steps=1, reduction_factor=2)
        require_at_least(self, num_seeds=1, num_steps=1, max_failures=0)
        if self.name is not None and not re.fullmatch(r"\w[\w.-]*", self.name):
            raise ValueError(f"name={self.name!r} is not a folder name: give letters, digits, - and _")
        if self.name is not None:
            check_folder_name("name", self.name, reserved=("mlflow-artifacts", "mlflow.db"))
        if self.budget is not None and not re.fullmatch(r"\d+|\d*\.?\d+h", self.budget):
            raise ValueError(f"budget={self.budget!r} is neither trials nor hours: give e.g. 20, or 3h")
        if self.budget is not None and (self.budget_trials == 0 or self.budget_seconds == 0):
            raise ValueError(f"budget={self.budget} is below one trial: give at least 1, or hours like 0.5h")

    @property
    def budget_trials(self) -> int | None:
        return int(self.budget) if self.budget is not None and self.budget.isdigit() else None

    @property
    def budget_seconds(self) -> float | None:
        return None if self.budget is None or self.budget.isdigit() else 3600 * float(self.budget.removesuffix("h"))
