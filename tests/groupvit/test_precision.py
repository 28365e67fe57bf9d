"""Which precision `auto` means, and what is said where it is emulated."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from groupvit.precision import (
    bfloat16_slowdown,
    emulation_warning,
    has_native_bfloat16,
    resolve_precision,
)

CPU = torch.device("cpu")
ASK = """
import torch
from groupvit.precision import emulation_warning, resolve_precision
torch.set_num_threads(1)
cpu = torch.device("cpu")
print(resolve_precision("auto", cpu), resolve_precision("bfloat16", cpu))
print(emulation_warning("bfloat16", cpu))
"""


def flags() -> set[str]:
    """What the kernel says of the processor: x86's `flags`, Arm's `Features`."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return {word for line in lines if line.startswith(("flags", "Features")) for word in line.split(":")[1].split()}


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="asks Linux")
@pytest.mark.skipif("ONEDNN_MAX_CPU_ISA" in os.environ, reason="a limit is set from outside")
def test_a_cpu_has_what_the_kernel_says_it_has() -> None:
    assert has_native_bfloat16(CPU) == bool(flags() & {"avx512_bf16", "amx_bf16", "bf16"})


@pytest.mark.skipif(not torch.backends.cpu.get_cpu_capability().startswith("AVX"), reason="limits of x86")
@pytest.mark.parametrize(
    "limits", [{"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}]
)
def test_a_limit_of_the_instruction_set_is_kept(limits: dict[str, str]) -> None:
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), **limits}
    done = subprocess.run([sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, check=True)
    chosen, warning = done.stdout.splitlines()
    assert chosen == "float32 bfloat16"
    assert warning.startswith("warning: this CPU emulates bfloat16: a matrix product takes ")


@pytest.mark.parametrize(("capability", "native"), [((7, 0), False), ((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_gpus_have_it_from_ampere_on(
    capability: tuple[int, int], native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)  # V100, T4, A100, H100
    assert has_native_bfloat16(torch.device("cuda", 0)) is native
    assert resolve_precision("auto", torch.device("cuda", 0)) == ("bfloat16" if native else "float32")


def test_what_is_asked_for_is_done() -> None:
    assert resolve_precision("float32", CPU) == "float32"
    assert resolve_precision("bfloat16", CPU) == "bfloat16"
    assert emulation_warning("float32", CPU) is None


def test_the_slowdown_is_a_ratio_of_times() -> None:
    assert 0.01 < bfloat16_slowdown(CPU) < 1000
