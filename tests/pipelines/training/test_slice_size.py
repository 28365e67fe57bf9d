"""What `ingest.slice_size=auto` chooses and keeps, and what is said when a slice does not fit."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from pipelines.cli.requests import pretrain_config, sweep_request
from pipelines.experiments.catalogue import gcc_yfcc_30e
from pipelines.experiments.config import ExperimentConfig, validate
from pipelines.experiments.fixed import fixes_the_result
from pipelines.training import gpu, worker
from pipelines.training.cost import CostConfig, estimate
from pipelines.training.job import SweepLink
from pipelines.training.memory import Device
from pipelines.training.pretrain import pretrain
from pipelines.training.slice_size import choose_slice_size, out_of_memory, with_recorded_slice_size, with_slice_size
from tests.support.small_run import make_config, write_noise

NUM_CPUS = 3
GIB = 2**30


def a_gpu(name: str, gib: float, *, has_bfloat16: bool = True) -> Device:
    return Device(name=name, memory=gib * GIB, is_gpu=True, has_bfloat16=has_bfloat16)


T4, A10G = a_gpu("T4", 14.6, has_bfloat16=False), a_gpu("A10G", 22.0)
A100, H100, H200 = a_gpu("A100", 39.4), a_gpu("H100", 79.1), a_gpu("H200", 139.8)


def paper(**training: Any) -> ExperimentConfig:
    config = gcc_yfcc_30e()
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, sources=("data",)),
        ingest=dataclasses.replace(config.ingest, slice_size="auto"),
        training=dataclasses.replace(config.training, **{"num_workers": 4, **training}),
    )


@pytest.mark.parametrize(
    ("devices", "training", "expected"),
    [
        pytest.param([T4], {}, 128, id="T4, in float32"),
        pytest.param([A10G], {}, 256, id="A10G"),
        pytest.param([A10G], {"precision": "float32"}, 128, id="A10G, in float32"),
        pytest.param([A100], {}, 512, id="A100 of 40 GB"),
        pytest.param([H100, H100], {}, 1024, id="H100"),
        pytest.param([H200], {"num_workers": 16}, 256, id="H200, but 256 images for each of 16"),
        pytest.param([H100, A10G], {}, 256, id="the smallest of several"),
        pytest.param([H100, a_gpu("old", 79.1, has_bfloat16=False)], {}, 512, id="float32 if one lacks bfloat16"),
        pytest.param([H100], {"num_workers": 1, "gpus_per_worker": 0.5, "global_batch_size": 1024}, 512, id="half"),
        pytest.param([A100], {"gpus_per_worker": 2.0}, 512, id="a worker computes on one GPU"),
    ],
)
def test_the_largest_slice_for_the_paper(devices: list[Device], training: dict[str, Any], expected: int) -> None:
    config = paper(**training)
    validate(config)
    chosen, why = choose_slice_size(config, devices)
    assert chosen == with_slice_size(config, expected)
    validate(chosen)
    assert f"ingest.slice_size=auto is {expected}" in why and "\n" not in why


def test_a_device_that_is_too_small_is_refused() -> None:
    message = (
        r"ingest.slice_size=auto: a step with a slice of 1 takes about .* GiB, more than 80% of the 1.0 GiB of tiny"
    )
    with pytest.raises(ValueError, match=message):
        choose_slice_size(paper(), [a_gpu("tiny", 1.0), H100])


def test_a_run_keeps_what_its_first_start_chose() -> None:
    config = paper()
    assert with_recorded_slice_size(config, None) == config
    description = {"fixed": fixes_the_result(with_slice_size(config, 1024))}
    assert with_recorded_slice_size(config, description).slice_size == 1024
    with pytest.raises(ValueError, match=r"16 is more than the 4 slices .* \(run .* began with .*slice_size=1024\)"):
        with_recorded_slice_size(paper(num_workers=16), description)


def test_auto_is_a_flag_and_needs_whole_batches() -> None:
    words = ["debug", "--data", "x", "--ingest.slice-size"]
    config = pretrain_config([*words, "auto"])
    assert config.ingest.slice_size == "auto"
    validate(config)
    assert pretrain_config([*words, "8"]).slice_size == 8
    with pytest.raises(ValueError, match="slice-size"):
        pretrain_config([*words, "most"])
    with pytest.raises(ValueError, match=r"num_workers=33 is more than training.global_batch_size=32: give at most 32"):
        validate(pretrain_config([*words, "auto", "--training.num-workers", "33"]))
    with pytest.raises(ValueError, match=r"ingest.slice_size=0 is too small"):
        validate(pretrain_config([*words, "0"]))


def test_a_sweep_wants_a_number() -> None:
    flags = ["--data", "x", "--evaluation.root", "y", "--ingest.slice-size", "auto"]
    with pytest.raises(ValueError, match=r"ingest.slice_size=auto: trials on different GPUs"):
        sweep_request(["grouping", "--base", "debug", *flags])


def test_the_cost_is_estimated_before_the_slice_is_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    summary = estimate(CostConfig(num_gpus=32, images_per_second_per_gpu=1.0), paper())
    assert summary["num_gpus"] == 32
    with pytest.raises(ValueError, match="num_gpus=5000 is more than the 4096 slices of a batch: give at most 4096"):
        estimate(CostConfig(num_gpus=5000, images_per_second_per_gpu=1.0), paper())


def test_a_slice_that_does_not_fit_is_followed_by_one_that_does() -> None:
    config = with_slice_size(paper(precision="bfloat16"), 1024)
    line = out_of_memory(config, A10G)
    assert "A10G has 22.0 GiB for a worker; a step with ingest.slice_size=1024 in bfloat16 takes about 4" in line
    assert "start another --training.run-name with --ingest.slice-size 256 (about 1" in line
    assert "or --model.image.activation-checkpointing True, because they change the result" in line
    assert "other processes" not in line and "\n" not in line
    # What should have fitted is halved, and the user is told where to look.
    assert "--ingest.slice-size 512 " in (surprise := out_of_memory(config, H100)) and "other processes" in surprise

    image = dataclasses.replace(config.model.image, activation_checkpointing=True)
    recomputed = dataclasses.replace(config, model=dataclasses.replace(config.model, image=image))
    assert "activation-checkpointing" not in out_of_memory(recomputed, A10G)
    assert out_of_memory(with_slice_size(recomputed, 1), A10G).endswith(": give more --training.num-workers")


def test_what_a_gpu_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        name, total_memory = "Tesla T4", 15_828_320_256

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    told = gpu.describe("cuda:0")
    assert told == Device(name="Tesla T4", memory=15_828_320_256, is_gpu=True, has_bfloat16=False)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.50 GiB."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
    ],
)
def test_errors_that_mean_no_memory(error: Exception, expected: bool) -> None:
    assert gpu.ran_out_of_memory(error) == expected


def started(tmp_path: Path, **training: Any) -> ExperimentConfig:
    """A run of four steps whose slices are not chosen yet."""
    data = tmp_path / "data"
    if not data.exists():
        write_noise(str(data))
    config = make_config(str(data), tmp_path / "runs", "auto", num_workers=1)
    return dataclasses.replace(
        config,
        ingest=dataclasses.replace(config.ingest, slice_size="auto"),
        training=dataclasses.replace(config.training, num_steps=4, record_samples=None, **training),
        tracking=dataclasses.replace(config.tracking, uri=None),
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_gpu_that_torch_cannot_use_is_refused_before_the_run_starts(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU that works")
    ray.shutdown()  # whatever another test left
    ray.init(address="local", num_cpus=3, num_gpus=1, include_dashboard=False, log_to_driver=False)
    try:
        with pytest.raises(ValueError, match="Ray counts a GPU on this machine, but torch cannot use it") as refused:
            pretrain(started(tmp_path, device="gpu"))
    finally:
        ray.shutdown()
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "runs" / "auto").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_chooses_once_and_records_a_number(
    tmp_path: Path, cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    config = started(tmp_path)
    summary = pretrain(config)
    assert "auto: ingest.slice_size=auto is 16: a step takes about " in capsys.readouterr().out
    assert json.loads((tmp_path / "runs/auto/run.json").read_text())["fixed"]["ingest.slice_size"] == 16
    state = json.loads((Path(summary["checkpoint"]) / "state.json").read_text())
    assert state["config"]["ingest"]["slice_size"] == 16

    assert pretrain(config)["resumed_from_step"] == 4
    assert pretrain(with_slice_size(config, 16))["resumed_from_step"] == 4
    assert "is 16" not in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"slice_size=8, but run 'auto' .* was started with 16"):
        pretrain(with_slice_size(config, 8))


def without_memory(*arguments: object) -> None:
    """Stands in for the training loop."""
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.50 GiB.\nGPU 0 has a total capacity of")


def train_without_memory() -> None:
    """Ray calls it in each of its processes."""
    worker.train = without_memory


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("in_place", [True, False], ids=["in the process of a trial", "in a worker of Ray Train"])
def test_a_worker_without_memory_ends_the_run_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], in_place: bool
) -> None:
    monkeypatch.setattr(worker, "train", without_memory)
    ray.shutdown()  # whatever another test left
    root = str(Path(__file__).parents[3])  # Ray's processes import this file by its name
    hook = {"worker_process_setup_hook": train_without_memory, "env_vars": {"PYTHONPATH": root}}
    environment = None if in_place else hook
    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False, runtime_env=environment)
    link = SweepLink(job_id="alone", tags={}) if in_place else None
    message = r"out of memory: this machine has .*slice_size=16 .*slice-size 8 "
    try:
        with pytest.raises(ValueError, match=message) as no:
            pretrain(with_slice_size(started(tmp_path), 16), link)
    finally:
        ray.shutdown()
    assert "\n" not in str(no.value) and "1.50 GiB" not in str(no.value)
    shown = capfd.readouterr().out
    assert shown.count("training from the start") == 1 and "rank 0 failed" not in shown
