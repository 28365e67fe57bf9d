"""A training loop of one worker: without Ray, with slices made by hand."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.experiments.config import ExperimentConfig, IngestConfig, TrainingConfig
from pipelines.ingest.plan import Slice
from pipelines.runs.folder import RunFolder
from pipelines.tracking.tracker import Tracker
from pipelines.training.loop import WorkerContext, train
from tests.support.small_model import SMALL

SLICE = 4


def lone_config(runs: Path, **training: Any) -> ExperimentConfig:
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


def train_alone(config: ExperimentConfig, runs: Path, tracker: Tracker | None = None) -> RunFolder:
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
        tracker=tracker,
        watch=lambda done, values: None,
        checkpoint_state={},
    )
    train(config, run, context)
    return run
