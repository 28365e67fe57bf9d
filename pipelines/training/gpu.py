"""This machine's GPU: whether torch can use it, before a worker starts, and what it is."""

import re

import psutil
import torch

from groupvit.precision import has_native_bfloat16
from pipelines.training.memory import Device

_OLDEST_DRIVER = {"12": 525, "13": 580}
"""Oldest major version of NVIDIA's driver, by the major version of CUDA that torch was built for."""
_ARCHITECTURE = re.compile(r"(?P<kind>sm|compute)_(?P<major>\d+)(?P<minor>\d)[a-z]?")
_OUT_OF_MEMORY = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
_SEE = "see docs/clusters.md, GPU machines"


def check_gpu() -> None:
    """Raises ValueError, in one line, if torch cannot use the GPUs that Ray counted on this machine.

    Ray counts a GPU whatever its driver. Torch needs a driver for its version of CUDA, and a GPU for which it has
    kernels.
    """
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            check_capability(torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index))
        return
    built = torch.version.cuda
    if built is None:
        raise ValueError(
            f"training.device: this machine has a GPU, but torch {torch.__version__} was built without CUDA: install "
            "a build with CUDA, or give --training.device cpu"
        )
    oldest = _OLDEST_DRIVER.get(built.partition(".")[0])
    raise ValueError(
        f"training.device: Ray counts a GPU on this machine, but torch cannot use it. The NVIDIA driver is "
        f"{driver_version() or 'missing or not running'}; torch {torch.__version__} is built for CUDA {built}"
        + (f", which needs driver {oldest} or newer" if oldest else "")
        + f": use a machine image with a newer driver ({_SEE})"
    )


def describe(device: torch.device | str) -> Device:
    """Returns what is to be known of a device of this machine. A CPU has the memory of the whole machine."""
    device = torch.device(device)
    has_bfloat16 = has_native_bfloat16(device)
    if device.type == "cpu":
        memory = psutil.virtual_memory().total
        return Device(name="this machine", memory=memory, is_gpu=False, has_bfloat16=has_bfloat16)
    found = torch.cuda.get_device_properties(device)
    return Device(name=found.name, memory=found.total_memory, is_gpu=True, has_bfloat16=has_bfloat16)


def ran_out_of_memory(error: Exception) -> bool:
    """Whether there was no memory left on the device: for torch, or for a library that it calls."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY)


def check_capability(name: str, capability: tuple[int, int]) -> None:
    """Raises ValueError if torch has no kernels for a GPU with this compute capability.

    A kernel built for 8.0 (`sm_80`) runs on 8.6, too, but not on 7.5 or 9.0. The driver compiles `compute_80` for 8.0
    and all newer GPUs.
    """
    found = [_ARCHITECTURE.fullmatch(name) for name in torch.cuda.get_arch_list()]
    kernels = [(arch["kind"], (int(arch["major"]), int(arch["minor"]))) for arch in found if arch]
    built = [version for kind, version in kernels if kind == "sm"]
    runs = any(
        version <= capability and (kind == "compute" or version[0] == capability[0]) for kind, version in kernels
    )
    if kernels and not runs:
        raise ValueError(
            f"training.device: {name} has compute capability {capability[0]}.{capability[1]}, and torch "
            f"{torch.__version__} has kernels for {', '.join(f'{major}.{minor}' for major, minor in built)}: use "
            f"another GPU, or another build of torch ({_SEE})"
        )


def driver_version() -> str | None:
    """Returns the version of this machine's NVIDIA driver, like 580.95.05, or None if there is no working driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
        version = pynvml.nvmlSystemGetDriverVersion()
        pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return None
    return version
