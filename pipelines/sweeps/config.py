"""What a sweep is asked for: its scheduler, searcher, budget and rungs. What it varies is a space (catalogue.py), of
which experiment is `base`; every flag of that experiment may stand beside these."""

import dataclasses
import re
from typing import Literal

from pipelines.local.folder_names import check_folder_name

Scheduler = Literal["none", "asha", "pbt"]
Searcher = Literal["grid", "random", "optuna"]

DEMO_STEPS = 600
"""Steps of a trial on the demo, whose own 2,200 are for one run: 12 trials then take less than an hour on 2 cores."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """How the space is searched."""

    base: str = "demo"
    """Experiment that the space varies. Every flag of `groupvit pretrain BASE` may be given here too."""
    name: str | None = None
    """Name of the sweep: its folder in training.runs-folder, and its run in MLflow. The same command with the same name
    continues a sweep that was stopped or killed. None: sweep-SPACE."""
    scheduler: Scheduler = "none"
    """Who may end a trial early. `asha`: at a rung, what is not among the best 1 / reduction-factor of all that came so
    far is stopped. `pbt`: at a rung, a trial of the lowest quarter takes the checkpoint of one of the highest quarter
    and goes on with changed rates and weights. `none`: every trial runs to its last step."""
    searcher: Searcher | None = None
    """Who chooses the next configuration: every point of a `grid`, draws at `random`, or `optuna` (TPE), which learns
    from the scores so far. None: grid where the space has no range, else random."""
    budget: str | None = None
    """How much is tried: a number of trials, like 20, or hours, like 3h or 0.5h, over all restarts; then no trial
    starts, and those that run stop at their next rung. None: all of a grid."""
    max_concurrent: int = 1
    """Trials at a time. Each takes its training workers, its evaluation workers, and a CPU for its data."""
    rung_every_n_steps: int | None = None
    """A rung: its checkpoint is evaluated (zero-shot mIoU), and the scheduler decides. None: four rungs."""
    reduction_factor: int = 3
    """Of asha: a rung lets 1 of so many go on; each rung that decides has so many times the steps of the one before."""
    num_seeds: int | None = None
    """Every configuration is trained with seeds 0, 1, ... None: as the space says (the paper's tables: 3)."""
    num_steps: int | None = None
    """Steps of a trial; the warm-up is scaled with them. None: training.num-steps, and 600 on the demo."""
    max_failures: int = 3
    """Times a trial is started again, from its newest checkpoint, after its node was lost."""
    seed: int = 0
    """Fixes what is drawn from the space."""

    def __post_init__(self) -> None:
        for name, least in {
            "max_concurrent": 1,
            "rung_every_n_steps": 1,
            "reduction_factor": 2,
            "num_seeds": 1,
            "num_steps": 1,
            "max_failures": 0,
        }.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}={value} is too small: give at least {least}")
        if self.name is not None and not re.fullmatch(r"\w[\w.-]*", self.name):
            raise ValueError(f"name={self.name!r} is no folder name: give letters, digits, - and _")
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
