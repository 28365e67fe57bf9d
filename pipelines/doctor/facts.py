"""What a machine knows about itself. Nothing here judges, and no value of a credential leaves it."""

import dataclasses
import os
import platform
import resource
import shutil
import socket
import tempfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pipelines.local.home import cache_folder
from pipelines.provenance import code_version

PACKAGES = ("torch", "ray", "pyarrow", "numpy")
_CREDENTIALS = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE"),
    *("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "RAY_AUTH_TOKEN"),
)
_CREDENTIAL_FILES = ("~/.aws/credentials", "~/.aws/config", "~/.mlflow/credentials", "~/.ray/auth_token")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Disk:
    """The file system of a folder."""

    folder: str
    free: int
    """Bytes."""
    size: int
    """Bytes."""
    device: int
    """Number of the file system on its machine."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """What a machine knows about itself."""

    host: str
    versions: Mapping[str, str]
    gpus: tuple[str, ...]
    """Names of the GPUs that torch can use."""
    driver: str | None
    """Version of NVIDIA's driver. None: there is none."""
    gpu_problem: str | None
    """Why torch cannot use the GPUs that Ray counts. None: it can, or Ray counts none."""
    has_bfloat16: bool
    """Whether the GPUs, else the CPU, compute bfloat16 natively."""
    num_descriptors: int
    """Number of files and connections that a process may have open. -1: unlimited."""
    disks: Mapping[str, Disk]
    """File systems, by what they are for."""
    shared_memory: Disk | None
    credentials: tuple[str, ...]
    """Names of the variables and files that are there."""


def collect(ray_folder: str | None, num_gpus: float) -> Facts:
    """Return the facts of this machine.

    Args:
        ray_folder: Folder in which Ray keeps its sockets and spilled objects. None: Ray does not run.
        num_gpus: Number of GPUs that Ray counts on this machine.
    """
    import torch

    from pipelines.training.gpu import check_gpu, describe, driver_version

    gpu_problem = None
    try:
        if num_gpus > 0:
            check_gpu()
    except ValueError as error:
        gpu_problem = str(error)
    gpus = tuple(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    device = describe("cuda:0" if gpus and gpu_problem is None else "cpu")
    places = {"temporary files": tempfile.gettempdir(), "cache": str(cache_folder())}
    if ray_folder is not None:
        places = {"Ray": ray_folder, **places}
    return Facts(
        host=socket.gethostname(),
        versions=_versions(),
        gpus=gpus,
        driver=driver_version(),
        gpu_problem=gpu_problem,
        has_bfloat16=device.has_bfloat16,
        num_descriptors=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        disks={name: _disk(folder) for name, folder in places.items()},
        shared_memory=_disk("/dev/shm") if Path("/dev/shm").is_dir() else None,
        credentials=tuple(name for name in _CREDENTIALS if os.environ.get(name))
        + tuple(name for name in _CREDENTIAL_FILES if Path(name).expanduser().is_file()),
    )


def _versions() -> dict[str, str]:
    """Return the versions of Python, of packages whose versions must agree, and of this code."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "missing"
    return versions | {"groupvit": code_version()}


def _disk(folder: str) -> Disk:
    """Return the file system of a folder, which need not exist."""
    path = Path(folder)
    while not path.exists():
        path = path.parent
    usage = shutil.disk_usage(path)
    return Disk(folder=str(path), free=usage.free, size=usage.total, device=path.stat().st_dev)
