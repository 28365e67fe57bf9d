"""Checkpoints come back exactly, or say in one line why not."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import groupvit
from groupvit import checkpoint
from groupvit.checkpoint_files import write_state
from groupvit.model import GroupViT
from tests.support.edited_checkpoint import renew_digests
from tests.support.small_model import SMALL


@pytest.fixture
def model() -> GroupViT:
    torch.manual_seed(0)
    model = GroupViT(SMALL)
    model.image_projector.norm.running_mean.normal_()  # type: ignore[union-attr]
    return model


@pytest.fixture
def saved(model: GroupViT, tmp_path: Path) -> Path:
    checkpoint.save(tmp_path / "runs" / "step_1", model, state={"step": 1})
    return tmp_path / "runs" / "step_1"


def test_model_and_state_come_back(model: GroupViT, saved: Path) -> None:
    loaded = groupvit.load(saved)
    assert loaded.config == SMALL
    assert not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert checkpoint.load_state(saved)["step"] == 1
    assert sorted(path.name for path in saved.iterdir()) == ["model.safetensors", "state.json"]
    assert [path.name for path in saved.parent.iterdir()] == ["step_1"]


def test_optimizer_state_comes_back_without_pickle(model: GroupViT, saved: Path, tmp_path: Path) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    (model.encode_text(torch.ones(2, 8, dtype=torch.int64)).sum() + model.logit_scale).backward()
    optimizer.step()
    checkpoint.save(tmp_path / "step_2", model, optimizer_state=optimizer.state_dict())
    restored = torch.optim.AdamW(model.parameters(), lr=0.5)
    restored.load_state_dict(checkpoint.load_optimizer_state(tmp_path / "step_2"))
    assert restored.param_groups[0]["lr"] == 0.1
    for parameter, expected in optimizer.state.items():
        assert torch.equal(restored.state[parameter]["exp_avg"], expected["exp_avg"])
    with pytest.raises(ValueError, match=r"has no optimizer\.pt"):
        checkpoint.load_optimizer_state(saved)


def test_failed_save_leaves_nothing(model: GroupViT, tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        checkpoint.save(tmp_path / "step_1", model, state={"step": object()})
    with pytest.raises(ValueError, match="reserved key 'model'"):
        checkpoint.save(tmp_path / "step_1", model, state={"model": 1})
    assert list(tmp_path.iterdir()) == []


def test_existing_checkpoint_is_not_touched(model: GroupViT, saved: Path) -> None:
    with pytest.raises(ValueError, match="exists"):
        checkpoint.save(saved, model)
    assert checkpoint.load_state(saved)["step"] == 1


def test_no_checkpoint(saved: Path, tmp_path: Path) -> None:
    for folder in (tmp_path / "nowhere", tmp_path, saved / "state.json"):
        with pytest.raises(ValueError, match="is not a checkpoint"):
            groupvit.load(folder)
    (saved / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has no model\.safetensors"):
        groupvit.load(saved)


def test_damaged_files(saved: Path) -> None:
    weights = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ValueError, match=r"model\.safetensors is corrupted"):
        groupvit.load(saved)
    (saved / "state.json").write_text('{"format_version": 1')
    with pytest.raises(ValueError, match=r"state\.json is corrupted"):
        groupvit.load(saved)


@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "optimizer.pt"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 223\n", "is a Git LFS pointer, not the file"),
        ("<!doctype html>\n<html><body>Sign in</body></html>", "is a web page, not the file"),
        ("", "is empty: it was cut short"),
    ],
)
def test_files_of_another_kind(model: GroupViT, tmp_path: Path, name: str, content: str, message: str) -> None:
    checkpoint.save(tmp_path / "step_1", model, optimizer_state={"a": torch.ones(1)})
    (tmp_path / "step_1" / name).write_text(content)
    read = checkpoint.load_optimizer_state if name == "optimizer.pt" else groupvit.load
    with pytest.raises(ValueError, match=rf"{re.escape(name)} {message}") as caught:
        read(tmp_path / "step_1")
    assert "\n" not in str(caught.value)


def test_newer_versions(saved: Path) -> None:
    state = json.loads((saved / "state.json").read_text())
    newer_config = {**state, "model": {**state["model"], "third_tower": True}}
    for newer, message in (({**state, "format_version": 2}, "format_version=2"), (newer_config, "third_tower")):
        write_state(saved, newer)
        with pytest.raises(ValueError, match=message):
            groupvit.load(saved)


def test_tensors_that_do_not_fit(saved: Path) -> None:
    path = saved / "model.safetensors"
    weights = load_file(path)
    norm = weights.pop("text_encoder.norm.bias")
    save_file(weights, path)
    renew_digests(saved)
    with pytest.raises(ValueError, match=r"lacks text_encoder\.norm\.bias"):
        groupvit.load(saved)
    save_file({**weights, "text_encoder.norm.bias": norm, "stray": norm.clone()}, path)
    renew_digests(saved)
    with pytest.raises(ValueError, match="unknown tensor stray"):
        groupvit.load(saved)
    save_file({**weights, "text_encoder.norm.bias": norm[:-1].clone()}, path)
    renew_digests(saved)
    with pytest.raises(ValueError, match=r"shape \(31,\) where \(32,\) is expected"):
        groupvit.load(saved)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["text_encoder.norm.bias", "image_projector.norm.running_var", "logit_scale"])
def test_weights_that_are_not_finite_are_refused_and_named(saved: Path, name: str, value: float) -> None:
    weights = load_file(saved / "model.safetensors")
    weights[name].view(-1)[-1] = value
    save_file(weights, saved / "model.safetensors")
    renew_digests(saved)
    with pytest.raises(
        ValueError, match=rf"model\.safetensors has {re.escape(name)}, in which 1 of \d+ .* {value}: use"
    ):
        groupvit.load(saved)


def test_an_optimizer_state_that_is_not_finite_is_refused_and_named(model: GroupViT, tmp_path: Path) -> None:
    state = {"optimizer": {"state": {3: {"exp_avg": torch.tensor([1.0, float("inf"), 2.0])}}, "param_groups": [{}]}}
    checkpoint.save(tmp_path / "step_1", model, optimizer_state=state)
    with pytest.raises(
        ValueError, match=r"optimizer\.pt has optimizer\.state\.3\.exp_avg, in which 1 of 3 numbers are inf"
    ):
        checkpoint.load_optimizer_state(tmp_path / "step_1")


def test_a_damaged_optimizer_state_is_named(model: GroupViT, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "step_1", model, optimizer_state={"a": torch.ones(100)})
    path = tmp_path / "step_1" / "optimizer.pt"
    whole = path.read_bytes()
    for damaged in (whole[:-50], whole[: len(whole) // 2], b"\x80"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"optimizer\.pt is corrupted \(.+\): use another checkpoint") as caught:
            checkpoint.load_optimizer_state(path.parent)
        assert "\n" not in str(caught.value)
