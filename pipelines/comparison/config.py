"""What `groupvit compare` is asked for."""

import dataclasses
from typing import Annotated

import tyro

MOST_RUNS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Which evaluations are set side by side, and where the comparison goes.

    Each is compared with each over the same images. A p-value below 0.05 says that these two models differ by more than
    the choice of images explains. It says nothing of seeds: train several of each, with `groupvit sweep`, before you
    say that one configuration is better than another.
    """

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Two or more: the folder of an evaluation (`evaluate --out`), the folder of a `pretrain` run that evaluated its
    checkpoints, or the id or name of a run in MLflow that holds an evaluation."""
    step: int | None = None
    """Of runs with evaluations of several checkpoints, the one of this training step. None: the latest of each."""
    benchmark: str | None = None
    """Of runs that hold several benchmarks (`evaluate --benchmark all`), this one, like voc21."""
    out: str | None = None
    """Folder for comparison.json, tables and pictures. None: they are not kept, but in MLflow."""
    tracking_uri: str | None = None
    """MLflow server or database. None: MLFLOW_TRACKING_URI."""
    mlflow_run: str | None = None
    """Id of an existing MLflow run that gets the comparison. None: it gets a run of its own, the same when done again,
    if a server is known."""
    log: bool = True
    """Whether it goes to MLflow. --no-log: it does not."""

    def __post_init__(self) -> None:
        if not 2 <= len(self.runs) <= MOST_RUNS:
            raise ValueError(f"runs={' '.join(self.runs) or 'none'}: give 2 to {MOST_RUNS} evaluations to compare")
        names = [run.rstrip("/") for run in self.runs]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"runs: {twice[0]} is given twice: give different evaluations")
        if self.step is not None and self.step < 0:
            raise ValueError(f"step={self.step} is no training step: give one from 0 on")
        if self.mlflow_run is not None and not self.log:
            raise ValueError(f"mlflow_run={self.mlflow_run} is given with log=False: give one of them")
