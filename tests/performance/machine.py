"""Which processor a figure is of."""

import os
import platform
from pathlib import Path

import torch

from groupvit.precision import has_native_bfloat16


def machine() -> str:
    """One line: the CPU's name, cores, instruction set in use, and whether it has bfloat16."""
    cpuinfo = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in _lines(cpuinfo) if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    bfloat16 = "native" if has_native_bfloat16(torch.device("cpu")) else "emulated"
    limits = [f"{key}={os.environ[key]}" for key in ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY") if key in os.environ]
    parts = [torch.backends.cpu.get_cpu_capability(), f"bfloat16 {bfloat16}", *limits, f"torch {torch.__version__}"]
    return ", ".join([name, f"{os.cpu_count()} cores", *parts])


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []
