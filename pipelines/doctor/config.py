"""Configuration of `groupvit doctor`."""

import dataclasses

from pipelines.errors import require_at_least


@dataclasses.dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """Checks this machine, or every machine of a cluster: versions, GPUs, clocks, disks, shared memory, file
    descriptors, ports, the network, credentials, object storage and MLflow. Each line is OK, a warning or a fault, with
    the fix. Exit code 1 if there is a fault. Credentials are never printed."""

    cluster: str | None = None
    """Ray cluster: HOST:6379, or auto for the one of this machine. None: RAY_ADDRESS, else this machine alone. From
    elsewhere: `ray exec ray-cluster.yaml "groupvit doctor --cluster auto"`, or kubectl exec on the head."""
    store: str | None = None
    """Folder on s3:// (or a shared disk) that every machine must reach, like that of the runs. One object is written,
    read and deleted there."""
    tracking: str | None = None
    """MLflow server or database to check; a run is created and deleted there. None: MLFLOW_TRACKING_URI, else none."""
    probe_megabytes: float = 16.0
    """Size of the object for `store`, and of what machines send each other, in megabytes."""
    least_free_gigabytes: float = 10.0
    """Free disk space below which there is a warning. Below a tenth of it, there is a fault."""
    seconds_to_answer: float = 180.0
    """Maximum time for a machine to answer a question. It may have to import torch."""

    def __post_init__(self) -> None:
        require_at_least(self, probe_megabytes=0.001, least_free_gigabytes=0, seconds_to_answer=1)
        if self.cluster is not None and self.cluster.endswith((".yaml", ".yml")):
            raise ValueError(
                f'cluster={self.cluster} is a file: give `ray exec {self.cluster} "groupvit doctor --cluster auto"`, '
                "or HOST:6379 on one of its machines"
            )
