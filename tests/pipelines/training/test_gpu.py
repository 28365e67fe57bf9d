"""What is refused on a machine whose GPU torch cannot use. Ray is told of GPUs here; torch finds no driver."""

import dataclasses
from contextlib import nullcontext
from pathlib import Path

import pynvml
import pytest
import ray
import torch

from pipelines.experiments.config import validate
from pipelines.runs.folder import RunFolder
from pipelines.training import gpu
from pipelines.training.job import start_or_continue
from pipelines.training.pretrain import pretrain
from pipelines.training.worker import train_here
from tests.support.small_run import make_config, write_noise

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU that works")


@no_gpu
@pytest.mark.parametrize("num_workers", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_a_gpu_without_a_driver_is_refused_at_once(tmp_path: Path, capfd: pytest.CaptureFixture[str], num_workers: int):
    config = make_config(write_noise(str(tmp_path / "data")), tmp_path / "runs", "gpu", num_workers=num_workers)
    config = dataclasses.replace(
        config,
        training=dataclasses.replace(config.training, device="gpu"),
        tracking=dataclasses.replace(config.tracking, uri=None),
    )
    ray.init(address="local", num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False)
    try:
        with pytest.raises(ValueError, match="Ray counts a GPU on this machine, but torch cannot use it") as refused:
            pretrain(config)
    finally:
        ray.shutdown()
    assert "\n" not in str(refused.value)
    assert "driver is missing or not running" in str(refused.value) and "needs driver 580 or newer" in str(
        refused.value
    )
    assert not (tmp_path / "runs" / "gpu" / "checkpoints").exists()


@no_gpu
def test_a_trial_that_trains_in_its_own_process_is_refused_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: ["0"])
    config = make_config("data", tmp_path / "runs", "trial", num_workers=1)
    config = dataclasses.replace(config, tracking=dataclasses.replace(config.tracking, uri=None))
    line = train_here(start_or_continue(RunFolder(f"{tmp_path}/runs/trial"), config, []))
    assert line is not None and "torch cannot use it" in line and "\n" not in line


@no_gpu
def test_the_message_names_the_driver_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlSystemGetDriverVersion", lambda: "535.183.01")
    with pytest.raises(ValueError, match=r"The NVIDIA driver is 535\.183\.01; .* needs driver 580 or newer"):
        gpu.check_gpu()


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 3), (12, 0)])
def test_gpus_that_torch_has_kernels_for(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: (torch._C._cuda_getArchFlags() or "").split())
    gpu.check_capability("a GPU", capability)


def test_a_gpu_that_torch_has_no_kernels_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: (torch._C._cuda_getArchFlags() or "").split())
    with pytest.raises(ValueError, match=r"Tesla V100 has compute capability 7\.0, and torch .* has kernels for 7\.5"):
        gpu.check_capability("Tesla V100", (7, 0))


@pytest.mark.parametrize(
    ("built", "capability", "runs"),
    [
        (["sm_90a"], (9, 0), True),
        (["sm_80", "compute_80"], (12, 0), True),
        (["sm_80", "compute_80"], (7, 5), False),
        (["gfx942"], (9, 4), True),  # AMD's names: no statement
    ],
)
def test_other_builds_of_torch(
    monkeypatch: pytest.MonkeyPatch, built: list[str], capability: tuple[int, int], runs: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)
    with nullcontext() if runs else pytest.raises(ValueError, match="has compute capability"):
        gpu.check_capability("a GPU", capability)


def test_several_workers_on_one_gpu_are_refused(tmp_path: Path) -> None:
    config = make_config("data", tmp_path, "shares", num_workers=2)
    for device in ("gpu", "auto"):
        shared = dataclasses.replace(
            config, training=dataclasses.replace(config.training, device=device, gpus_per_worker=0.5)
        )
        with pytest.raises(ValueError, match=r"training\.gpus_per_worker=0\.5 with training\.num_workers=2"):
            validate(shared)
        validate(dataclasses.replace(shared, training=dataclasses.replace(shared.training, num_workers=1)))
    validate(dataclasses.replace(config, training=dataclasses.replace(config.training, device="cpu")))
