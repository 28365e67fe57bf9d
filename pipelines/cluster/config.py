"""How a command is handed to a cluster: which cluster, with what, and what is seen of it afterwards."""

import dataclasses
import re

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
"""Where `ray dashboard ray-cluster.yaml` and `kubectl port-forward` bring the cluster's job server."""

_SETTINGS = re.compile(r"[A-Za-z_]\w*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubmitConfig:
    """The flags of `groupvit submit` itself; all others belong to the command that is submitted."""

    address: str = DEFAULT_ADDRESS
    """The cluster's job server."""
    env: tuple[str, ...] = ()
    """Names of environment variables the job and its workers get, with the values they have here. The values travel in
    the package, which the dashboard does not show."""
    cluster: str | None = None
    """File of an autoscaling cluster, for `ray up` or KubeRay: what it may have at most counts, and the job waits
    until that is there. None: what the cluster has now counts."""
    wait_minutes: float = 30.0
    """How long the job waits for the machines of `cluster`."""
    code: bool = True
    """Run the code that is here. --no-code: what is installed on the cluster's machines."""
    max_code_megabytes: float = 50.0
    """Largest package of code that is uploaded."""
    allow_local_paths: bool = False
    """Accept paths and addresses that only this machine knows: for clusters that share its disks."""
    follow: bool = False
    """Show what the job prints until it ends, and end with its exit code. The job goes on without that."""

    def __post_init__(self) -> None:
        if not re.match(r"https?://[^/]+", self.address):
            raise ValueError(f"address={self.address} is no job server: give e.g. {DEFAULT_ADDRESS}")
        for name in self.env:
            if not _SETTINGS.fullmatch(name):
                shown = name.partition("=")[0]
                raise ValueError(f"env={shown}... is no name: give --env {shown}, the value is taken from here")
        for name in ("wait_minutes", "max_code_megabytes"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} is too small: give more than 0")
