"""When the training loop stops by itself: without Ray, with slices made by hand."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines import train_loop
from pipelines.config import ExperimentConfig, IngestConfig, TrainingConfig
from pipelines.progress import RunStoppedError, Slice
from pipelines.run_folder import RunFolder
from pipelines.train_loop import WorkerContext, train
from tests.groupvit.small import SMALL

SLICE = 4


def config(runs: Path, **training: Any) -> ExperimentConfig:
    fixed: dict[str, Any] = {"global_batch_size": SLICE, "precision": "float32", "checkpoint_every_n_steps": 1}
    return ExperimentConfig(
        name="small",
        model=SMALL,
        ingest=IngestConfig(slice_size=SLICE),
        training=TrainingConfig(num_steps=2, runs_folder=str(runs), **{**fixed, **training}),
    )


def slices(first_step: int, num_prompts: int) -> Iterator[Slice]:
    """Random images and texts, endless."""
    rng = np.random.default_rng(0)
    position = first_step * SLICE
    while True:
        ids = rng.integers(1, 99, (SLICE, 1 + num_prompts, 16)).astype(np.int32)
        ids[:, :, -1] = 99
        yield {
            "image": rng.integers(0, 256, (SLICE, 3, 32, 32), dtype=np.uint8),
            "token_ids": ids,
            "prompt_keys": rng.integers(0, 5, (SLICE, num_prompts)),
            "erase_box": np.zeros((SLICE, 4), np.int16),
            "noise_seed": np.zeros(SLICE, np.int64),
            "position": np.arange(position, position + SLICE),
            "source": np.zeros(SLICE, np.int8),
            "substituted": np.zeros(SLICE, bool),
        }
        position += SLICE


def run_alone(config: ExperimentConfig, runs: Path) -> RunFolder:
    run = RunFolder(str(runs / "small"))
    first_step = run.latest_step()
    context = WorkerContext(
        rank=0,
        world_size=1,
        device=torch.device("cpu"),
        group=None,
        precision="float32",
        first_step=first_step,
        slices=slices(first_step, config.loss.num_prompts),
        say=lambda line: None,
        tracker=None,
        watch=lambda done, values: None,
        checkpoint_state={},
    )
    train(config, run, context)
    return run


@pytest.mark.parametrize(
    ("metric", "message"), [("loss", "the loss is inf"), ("grad_norm", "the norm of the gradient is inf")]
)
def test_what_is_not_finite_stops_the_run_before_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metric: str, message: str
) -> None:
    """A gradient that is not finite leaves no finite weight, after a loss that was."""
    step = train_loop.train_step

    def breaking(*arguments: Any, **options: Any) -> dict[str, torch.Tensor]:
        metrics = step(*arguments, **options)
        return metrics | ({metric: torch.tensor(torch.inf)} if options["step"] == 1 else {})

    monkeypatch.setattr(train_loop, "train_step", breaking)
    with pytest.raises(RunStoppedError, match=f"{message} at step 2: start under another --training.run-name"):
        run_alone(config(tmp_path), tmp_path)
    assert RunFolder(str(tmp_path / "small")).checkpoint_steps() == [1]


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_a_checkpoint_that_is_not_finite_is_not_gone_on_from(tmp_path: Path, ema_decay: float | None) -> None:
    first = config(tmp_path, ema_decay=ema_decay)
    run = run_alone(first, tmp_path)
    weights = Path(run.checkpoint_uri(2)) / "model.safetensors"
    tensors = load_file(weights)
    tensors["text_encoder.norm.weight"][3] = torch.nan
    save_file(tensors, weights)
    longer = dataclasses.replace(first, training=dataclasses.replace(first.training, num_steps=3))
    with pytest.raises(
        RunStoppedError, match=r"text_encoder\.norm\.weight, .* without .*/step-00000002 the run goes on"
    ):
        run_alone(longer, tmp_path)


@pytest.mark.parametrize("entry", ["raw_model", "optimizer"])
def test_the_state_that_training_needs_is_finite(tmp_path: Path, entry: str) -> None:
    first = config(tmp_path, ema_decay=0.9)
    path = Path(run_alone(first, tmp_path).checkpoint_uri(2)) / "optimizer.pt"
    saved = torch.load(path, weights_only=True)
    broken = saved["raw_model"]["logit_scale"] if entry == "raw_model" else saved["optimizer"]["state"][0]["exp_avg"]
    broken.view(-1)[0] = -torch.inf
    torch.save(saved, path)
    longer = dataclasses.replace(first, training=dataclasses.replace(first.training, num_steps=3))
    with pytest.raises(RunStoppedError, match=rf"optimizer\.pt has {entry}\..* numbers are -inf"):
        run_alone(longer, tmp_path)
