"""Arguments of `groupvit compare`."""

import dataclasses
from typing import Annotated

import tyro

MOST_RUNS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Compares evaluations.

    Each pair is compared over the same images. A p-value below 0.05 means that these two models differ by more than the
    choice of images explains. It does not cover seeds: train several seeds of each configuration with `groupvit sweep`
    before you say that one is better than another.
    """

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Two or more evaluations. Each is the folder of an evaluation (`evaluate --out`), the folder of a `pretrain` run
    that evaluated its checkpoints, or the id or name of an MLflow run that holds an evaluation."""
    step: int | None = None
    """Training step to compare, for runs with evaluations of several checkpoints. None: the latest of each run."""
    benchmark: str | None = None
    """Benchmark to compare, e.g. voc21, for runs that hold several (`evaluate --benchmark all`)."""
    out: str | None = None
    """Folder for comparison.json, tables and pictures. None: they are kept only in MLflow."""
    tracking_uri: str | None = None
    """MLflow server or database. None: MLFLOW_TRACKING_URI."""
    mlflow_run: str | None = None
    """Id of an existing MLflow run that receives the comparison. None: a run of its own, if a server or database is
    given. The same comparison uses the same run again."""
    log: bool = True
    """Whether to log the comparison to MLflow. --no-log: do not."""

    def __post_init__(self) -> None:
        if not 2 <= len(self.runs) <= MOST_RUNS:
            raise ValueError(f"runs={' '.join(self.runs) or 'none'}: give 2 to {MOST_RUNS} evaluations to compare")
        names = [run.rstrip("/") for run in self.runs]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"runs: {twice[0]} is given twice: give different evaluations")
        if self.step is not None and self.step < 0:
            raise ValueError(f"step={self.step} is not a training step: give one from 0 on")
        if self.mlflow_run is not None and not self.log:
            raise ValueError(f"mlflow_run={self.mlflow_run} is given with log=False: give one of them")
