"""When the training loop stops by itself: without Ray, with slices made by hand."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.training.progress import RunStoppedError
from tests.support.edited_checkpoint import renew_digests
from tests.support.lone_worker import lone_config, train_alone


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_a_checkpoint_that_is_not_finite_is_not_gone_on_from(tmp_path: Path, ema_decay: float | None) -> None:
    first = lone_config(tmp_path, ema_decay=ema_decay)
    run = train_alone(first, tmp_path)
    weights = Path(run.checkpoint_uri(2)) / "model.safetensors"
    tensors = load_file(weights)
    tensors["text_encoder.norm.weight"][3] = torch.nan
    save_file(tensors, weights)
    renew_digests(weights.parent)
    longer = dataclasses.replace(first, training=dataclasses.replace(first.training, num_steps=3))
    with pytest.raises(
        RunStoppedError, match=r"text_encoder\.norm\.weight, .* without .*/step-00000002 the run goes on"
    ):
        train_alone(longer, tmp_path)


@pytest.mark.parametrize("entry", ["raw_model", "optimizer"])
def test_the_state_that_training_needs_is_finite(tmp_path: Path, entry: str) -> None:
    first = lone_config(tmp_path, ema_decay=0.9)
    path = Path(train_alone(first, tmp_path).checkpoint_uri(2)) / "optimizer.pt"
    saved = torch.load(path, weights_only=True)
    broken = saved["raw_model"]["logit_scale"] if entry == "raw_model" else saved["optimizer"]["state"][0]["exp_avg"]
    broken.view(-1)[0] = -torch.inf
    torch.save(saved, path)
    renew_digests(path.parent)
    longer = dataclasses.replace(first, training=dataclasses.replace(first.training, num_steps=3))
    with pytest.raises(RunStoppedError, match=rf"optimizer\.pt has {entry}\..* numbers are -inf"):
        train_alone(longer, tmp_path)


def test_deterministic_noise_is_other_noise_and_resumes_with_the_same_bits(tmp_path: Path) -> None:
    def weights(folder: str, *, deterministic: bool, resumed: bool = False) -> dict[str, torch.Tensor]:
        runs = tmp_path / folder
        config = lone_config(runs, num_steps=2, deterministic=deterministic)
        if resumed:
            first = dataclasses.replace(config.training, num_steps=1)
            train_alone(dataclasses.replace(config, training=first), runs)
        return load_file(Path(train_alone(config, runs).checkpoint_uri(2)) / "model.safetensors")

    whole, resumed = weights("whole", deterministic=True), weights("resumed", deterministic=True, resumed=True)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    other = weights("other", deterministic=False)
    assert any(not torch.equal(whole[name], other[name]) for name in whole)
    assert not torch.are_deterministic_algorithms_enabled()
