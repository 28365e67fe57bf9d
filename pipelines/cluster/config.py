"""Configuration of `groupvit submit`: the cluster, what the job takes along, and whether to follow the job."""

import dataclasses
import re

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
"""Address of the cluster's job server through `ray dashboard ray-cluster.yaml` or `kubectl port-forward`."""

_SETTINGS = re.compile(r"[A-Za-z_]\w*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubmitConfig:
    """Flags of `groupvit submit` itself. All others belong to the submitted command."""

    address: str = DEFAULT_ADDRESS
    """URL of the cluster's job server."""
    env: tuple[str, ...] = ()
    """Names of environment variables for the job and its workers. The values are read here, and travel in the package,
    which the dashboard does not show."""
    cluster: str | None = None
    """Cluster file of an autoscaling cluster, for `ray up` or KubeRay. The job must fit on its maximum size, and waits
    until the machines are there. None: the job must fit on the machines the cluster has now."""
    wait_minutes: float = 30.0
    """Maximum time in minutes to wait for the machines of `cluster`."""
    code: bool = True
    """Whether to upload and run the code that is here. --no-code: run the code installed on the cluster's machines."""
    max_code_megabytes: float = 50.0
    """Maximum size of the uploaded package of code, in megabytes."""
    allow_local_paths: bool = False
    """Whether to accept paths and addresses that only this machine knows, for clusters that share its disks."""
    follow: bool = False
    """Whether to show the job's output until it ends, and to end with its exit code. Interrupting this does not stop
    the job."""

    def __post_init__(self) -> None:
        if not re.match(r"https?://[^/]+", self.address):
            raise ValueError(f"address={self.address} is not a job server: give e.g. {DEFAULT_ADDRESS}")
        for name in self.env:
            if not _SETTINGS.fullmatch(name):
                shown = name.partition("=")[0]
                raise ValueError(f"env={shown}... is not a name: give --env {shown}, the value is taken from here")
        for name in ("wait_minutes", "max_code_megabytes"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} is too small: give more than 0")
