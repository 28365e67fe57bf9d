"""A run's precision is chosen once and kept, whatever hardware goes on with it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pipelines.experiments.config import DataConfig, ExperimentConfig, TrainingConfig
from pipelines.runs.folder import RunFolder, recorded_precision
from pipelines.training import precision as run_precision
from pipelines.training.job import start_or_continue
from pipelines.training.precision import settle_precision
from tests.support.torch_workers import run_workers

CPU = torch.device("cpu")


def started(folder: Path, **training: Any) -> RunFolder:
    """A run's folder after the driver has started or continued it."""
    run = RunFolder(str(folder))
    config = ExperimentConfig(
        name="a", data=DataConfig(sources=("d",)), training=TrainingConfig(runs_folder=str(folder.parent), **training)
    )
    start_or_continue(run, config, ())
    return run


@pytest.fixture
def hardware(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets whether the hardware has bfloat16."""
    return lambda native: monkeypatch.setattr(run_precision, "has_native_bfloat16", lambda device: native)


@pytest.mark.parametrize(("native", "chosen"), [(True, "bfloat16"), (False, "float32")])
def test_the_first_start_chooses_and_other_hardware_keeps_it(
    native: bool, chosen: str, hardware: Any, tmp_path: Path
) -> None:
    run = started(tmp_path / "a")
    assert recorded_precision(run.read_description()) is None
    hardware(native)
    assert settle_precision(run, "auto", CPU)[0] == chosen
    assert json.loads((tmp_path / "a" / "run.json").read_text())["precision"] == chosen
    hardware(not native)
    assert settle_precision(started(tmp_path / "a"), "auto", CPU) == (chosen, "as the run began")
    assert settle_precision(started(tmp_path / "a", precision=chosen), "auto", CPU)[0] == chosen


def test_another_precision_than_the_chosen_one_is_refused(hardware: Any, tmp_path: Path) -> None:
    run = started(tmp_path / "a")
    hardware(False)
    settle_precision(run, "auto", CPU)
    with pytest.raises(ValueError, match=r"training\.precision=bfloat16, but run 'a' .* was started with float32"):
        started(tmp_path / "a", precision="bfloat16")


def test_a_run_of_an_earlier_version_goes_on_in_its_precision(hardware: Any, tmp_path: Path) -> None:
    run = started(tmp_path / "a", precision="bfloat16")  # what such a run's description says
    assert "precision" not in (run.read_description() or {})
    hardware(False)
    assert settle_precision(started(tmp_path / "a"), "auto", CPU)[0] == "bfloat16"


def test_what_is_asked_for_is_recorded(hardware: Any, tmp_path: Path) -> None:
    hardware(True)
    run = started(tmp_path / "a", precision="float32")
    assert settle_precision(run, "float32", CPU)[0] == "float32"
    assert recorded_precision(run.read_description()) == "float32"


def settled_by_rank(group: dist.ProcessGroup, folder: str) -> str:
    """What a worker takes if only the GPU of rank 0 has bfloat16."""
    run_precision.has_native_bfloat16 = lambda device: dist.get_rank(group) == 0
    return settle_precision(RunFolder(folder), "auto", CPU, group)[0]


def test_gpus_of_several_kinds_train_in_what_all_of_them_can(tmp_path: Path) -> None:
    run = started(tmp_path / "a")
    assert run_workers(settled_by_rank, 2, run.uri) == ["float32", "float32"]
    assert recorded_precision(run.read_description()) == "float32"
