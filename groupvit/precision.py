"""Precision of a step: float32, TF32, or autocast to bfloat16 with float32 where sums need it."""

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from groupvit.config import Precision, PrecisionChoice

_AMPERE = 8
"""Major compute capability of the first GPUs with TF32 and bfloat16. Older ones emulate bfloat16."""
_ISA_WITHOUT_BFLOAT16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")
"""Instruction set limits under which oneDNN, which computes matrix products on CPUs, emulates bfloat16."""
_SECONDS_TO_MEASURE = 0.025


@contextlib.contextmanager
def autocast(device: torch.device, precision: Precision) -> Iterator[None]:
    """Compute in `precision` meanwhile: forward passes only. Parameters stay float32."""
    with (
        float32_products(device, precision),
        torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"),
    ):
        yield


@contextlib.contextmanager
def float32_products(device: torch.device, precision: Precision) -> Iterator[None]:
    """Meanwhile, a GPU multiplies float32 matrices in TF32 if `precision` is tf32, else exactly. No change on CPUs.

    For a training step, because autocast is not for backward passes. It is a setting of the whole process.
    """
    if device.type != "cuda":
        yield
        return
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


@contextlib.contextmanager
def same_bits(on: bool) -> Iterator[None]:
    """Meanwhile, if `on`, torch uses only algorithms that give the same bits each time, or raises RuntimeError."""
    memory: Any = torch.utils.deterministic  # has a property, which type checkers do not see
    before, fills = torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
        torch.use_deterministic_algorithms(True)
        memory.fill_uninitialized_memory = False  # it finds bugs, and takes time
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        memory.fill_uninitialized_memory = fills


def at_least_float32(x: Tensor) -> Tensor:
    """Convert `x` to float32 if its type is narrower."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def resolve_precision(choice: PrecisionChoice, device: torch.device) -> Precision:
    """Precision to use for `choice` on `device`. ValueError for TF32 if the device has none."""
    if choice == "tf32" and not has_tf32(device):
        raise ValueError("precision=tf32 needs an NVIDIA GPU since Ampere: give float32, or auto")
    if choice != "auto":
        return choice
    return "bfloat16" if has_native_bfloat16(device) else "float32"


def has_tf32(device: torch.device) -> bool:
    """Whether the device multiplies float32 matrices in TF32, with mantissas of 10 bits: CUDA GPUs since Ampere."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= _AMPERE


def has_native_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware: CUDA GPUs since Ampere, x86 CPUs with AVX512-BF16 or
    AMX, Arm CPUs with bf16. Other devices emulate it, 15 to 50 times slower than float32.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= _AMPERE
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
    if precision != "bfloat16" or has_native_bfloat16(device):
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
