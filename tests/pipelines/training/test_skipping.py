"""Steps with numbers that are not finite are skipped, in a loop without Ray, with slices made by hand."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from groupvit import training
from groupvit.heads import TowerFeatures
from pipelines.runs.folder import RunFolder
from pipelines.runs.skipped import read_skipped, skipped_steps
from pipelines.training.progress import RunStoppedError
from tests.support.lone_worker import lone_config, train_alone

Plant = Callable[[set[int]], None]


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Plant:
    """Puts a NaN into the features of these steps, from which all gradients come."""
    compute, features = training.compute_gradients, training.tower_features
    steps: set[int] = set()
    now = [0]

    def broken_features(*arguments: Any) -> TowerFeatures:
        found = features(*arguments)
        if now[0] in steps:
            rows = found.tensors[0].clone()
            rows[0, 0, 0] = torch.nan
            found = dataclasses.replace(found, tensors=(rows, *found.tensors[1:]))
        return found

    def compute_at(*arguments: Any, **options: Any) -> dict[str, torch.Tensor]:
        now[0] = options["step"]
        return compute(*arguments, **options)

    monkeypatch.setattr(training, "tower_features", broken_features)
    monkeypatch.setattr(training, "compute_gradients", compute_at)

    def plant_in(where: set[int]) -> None:
        steps.clear()
        steps.update(where)

    return plant_in


def weights(run: RunFolder, step: int) -> dict[str, torch.Tensor]:
    return load_file(Path(run.checkpoint_uri(step)) / "model.safetensors")


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_a_step_that_is_not_finite_is_skipped_and_recorded(
    tmp_path: Path, plant: Plant, ema_decay: float | None
) -> None:
    plant({2, 3})
    run = train_alone(lone_config(tmp_path, num_steps=5, ema_decay=ema_decay, keep_checkpoints=None), tmp_path)
    assert skipped_steps(run) == [2, 3]
    assert read_skipped(run, 2) == {"loss": None, "grad_norm": None, "median": None}
    assert read_skipped(run, 1) is None
    states = [run.read_state(step) for step in range(1, 6)]
    assert [state["guard"]["skipped_steps"] for state in states] == [0, 0, 1, 2, 2]
    assert states[1]["loss"] == states[3]["loss"] != states[4]["loss"]
    before, after, last = (weights(run, step) for step in (2, 4, 5))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert any(not torch.equal(before[name], last[name]) for name in before)


def test_a_resumed_run_skips_the_same_steps(tmp_path: Path, plant: Plant) -> None:
    plant({1, 4})
    runs = tmp_path / "whole"
    config = lone_config(runs, max_grad_norm_ratio=1.05, num_steps=24, ema_decay=0.9, keep_checkpoints=None)
    whole = train_alone(config, runs)
    assert len(skipped_steps(whole)) > 2  # also some for their norm
    for step in (1, 2, 19):
        resumed = tmp_path / f"from-{step}"
        shutil.copytree(whole.checkpoint_uri(step), RunFolder(str(resumed / "small")).checkpoint_uri(step))
        run = train_alone(config, resumed)
        assert skipped_steps(run) == [skipped for skipped in skipped_steps(whole) if skipped >= step]
        assert run.read_state(24)["guard"] == whole.read_state(24)["guard"]
        expected = weights(whole, 24)
        assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(run, 24).items())


def test_too_many_in_a_row_stop_the_run_before_the_checkpoint(tmp_path: Path, plant: Plant) -> None:
    plant({1, 2, 3})
    config = lone_config(tmp_path, num_steps=6, max_skipped_steps=2)
    message = (
        "3 steps in a row were skipped, up to step 4, where the loss was nan .* start under another --training.run"
    )
    with pytest.raises(RunStoppedError, match=message):
        train_alone(config, tmp_path)
    run = RunFolder(str(tmp_path / "small"))
    assert run.latest_step() == 3 and skipped_steps(run) == [1, 2, 3]


def test_a_run_without_one_good_step_does_not_end_well(tmp_path: Path, plant: Plant) -> None:
    plant({0, 1})
    with pytest.raises(RunStoppedError, match="2 steps in a row were skipped, up to step 2"):
        train_alone(lone_config(tmp_path), tmp_path)
