"""Precision of a step: float32, or autocast to bfloat16 with float32 where sums need it."""

import os
import time

import torch
from torch import Tensor

from groupvit.config import Precision, PrecisionChoice

_FIRST_CUDA_WITH_BFLOAT16 = 8
"""Major compute capability of Ampere. Older GPUs emulate bfloat16."""
_ISA_WITHOUT_BFLOAT16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")
"""Instruction set limits under which oneDNN, which computes matrix products on CPUs, emulates bfloat16."""
_SECONDS_TO_MEASURE = 0.025


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Context in which matrix products run in `precision`. Parameters stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def at_least_float32(x: Tensor) -> Tensor:
    """Convert `x` to float32 if its type is narrower."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def resolve_precision(choice: PrecisionChoice, device: torch.device) -> Precision:
    """Precision to use for `choice` on `device`."""
    if choice != "auto":
        return choice
    return "bfloat16" if has_native_bfloat16(device) else "float32"


def has_native_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware: CUDA GPUs since Ampere, x86 CPUs with AVX512-BF16 or
    AMX, Arm CPUs with bf16. Other devices emulate it, 15 to 50 times slower than float32.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= _FIRST_CUDA_WITH_BFLOAT16
    if device.type != "cpu":
        return False
    capabilities = torch.cpu.get_capabilities()
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return bool(capabilities.get("bf16"))  # Arm's name for it
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()
    allowed = torch.backends.cpu.get_cpu_capability().startswith("AVX512") and limit not in _ISA_WITHOUT_BFLOAT16
    return allowed and bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def emulation_warning(precision: Precision, device: torch.device) -> str | None:
    """One-line warning with the slowdown if `device` emulates `precision`, else None. Takes 50 ms."""
    if precision == "float32" or has_native_bfloat16(device):
        return None
    name = "CPU" if device.type == "cpu" else torch.cuda.get_device_name(device)
    return (
        f"warning: this {name} emulates bfloat16: a matrix product takes {bfloat16_slowdown(device):.0f} times as long "
        "as in float32; precision auto chooses float32 here"
    )


def bfloat16_slowdown(device: torch.device) -> float:
    """Time of a matrix product in bfloat16 divided by that in float32 on `device`, measured for 50 ms."""
    return _seconds_per_product(device, torch.bfloat16) / _seconds_per_product(device, torch.float32)


def _seconds_per_product(device: torch.device, dtype: torch.dtype) -> float:
    matrix = torch.ones(256, 256, dtype=dtype, device=device)
    (matrix @ matrix).sum().item()  # one-time setup, not measured
    start, number = time.perf_counter(), 0
    while number == 0 or time.perf_counter() - start < _SECONDS_TO_MEASURE:
        (matrix @ matrix).sum().item()
        number += 1
    return (time.perf_counter() - start) / number
