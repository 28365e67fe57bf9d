"""Which precision `auto` means, and what is said where it is emulated."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from groupvit.config import Precision
from groupvit.precision import (
    bfloat16_slowdown,
    emulation_warning,
    float32_products,
    has_native_bfloat16,
    has_tf32,
    resolve_precision,
    same_bits,
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


def test_tf32_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="precision=tf32 needs an NVIDIA GPU since Ampere: give float32"):
        resolve_precision("tf32", CPU)
    for major, has_it in ((7, False), (8, True), (9, True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, major=major: (major, 0))
        assert has_tf32(torch.device("cuda", 0)) == has_it


def test_only_tf32_multiplies_float32_in_fewer_bits_on_a_gpu() -> None:
    before = torch.get_float32_matmul_precision()
    gpu = torch.device("cuda", 0)
    expected: tuple[tuple[Precision, str, bool], ...] = (("float32", "highest", False), ("tf32", "high", True))
    for precision, products, convolutions in expected:
        with float32_products(gpu, precision):
            assert torch.get_float32_matmul_precision() == products
            assert torch.backends.cudnn.allow_tf32 == convolutions
        assert torch.get_float32_matmul_precision() == before
        assert torch.backends.cudnn.allow_tf32  # PyTorch's default
    with float32_products(CPU, "tf32"):
        assert torch.get_float32_matmul_precision() == before


def test_same_bits_are_asked_of_torch_for_the_time_of_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    with same_bits(False):
        assert not torch.are_deterministic_algorithms_enabled()
    with same_bits(True):
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"]
    assert not torch.are_deterministic_algorithms_enabled()
