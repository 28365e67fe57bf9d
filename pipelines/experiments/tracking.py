"""Where a run is recorded."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where metrics are recorded."""

    uri: str | None = "default"
    """MLflow server or database. `default`: MLFLOW_TRACKING_URI if set, else the SQLite file mlflow.db in
    `runs_folder`. None: off."""
    experiment: str = "groupvit"
    """MLflow experiment of the run."""
    system_metrics_every_n_seconds: float | None = 10.0
    """Number of seconds between records of CPU, memory, disk, network and GPU use. None: off."""
