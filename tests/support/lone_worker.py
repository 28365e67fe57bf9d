"""Training loops of one or several workers: without Ray, with slices made by hand."""

import dataclasses
import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from groupvit.augment import draw_rand_augment, operation_columns
from groupvit.config import Precision
from pipelines.experiments.config import ExperimentConfig, IngestConfig, TrainingConfig
from pipelines.ingest.plan import Slice
from pipelines.runs.damage import newest_whole_step
from pipelines.runs.folder import RunFolder
from pipelines.tracking.tracker import Tracker
from pipelines.training.loop import WorkerContext, train
from tests.support.small_model import SMALL

SLICE = 4


def lone_config(runs: Path, **training: Any) -> ExperimentConfig:
    fixed: dict[str, Any] = {
        "num_steps": 2,
        "global_batch_size": SLICE,
        "precision": "float32",
        "checkpoint_every_n_steps": 1,
        "compile": "off",
        "reduce_precision": "exact",
    }
    return ExperimentConfig(
        name="small",
        model=SMALL,
        ingest=IngestConfig(slice_size=SLICE),
        training=TrainingConfig(runs_folder=str(runs), **{**fixed, **training}),
    )


def slices(position: int, num_prompts: int, *, augment_on: str = "cpu") -> Iterator[Slice]:
    """Slices from this position on, endless: random images, some with an erased rectangle, and texts of any length."""
    while True:
        rng = np.random.default_rng(position)
        ids = rng.integers(1, 99, (SLICE, 1 + num_prompts, 16)).astype(np.int32)
        ends = rng.integers(2, 16, (SLICE, 1 + num_prompts, 1))
        np.put_along_axis(ids, ends, 99, axis=2)
        ids[np.arange(16) > ends] = 0
        erase_box = np.zeros((SLICE, 4), np.int16)
        erase_box[::2] = 2, 3, 9, 7
        yield {
            "image": rng.integers(0, 256, (SLICE, 3, 32, 32), dtype=np.uint8),
            "token_ids": ids,
            "prompt_keys": rng.integers(0, 5, (SLICE, num_prompts)),
            "erase_box": erase_box,
            "noise_seed": rng.integers(0, 2**62, SLICE),
            "position": np.arange(position, position + SLICE),
            "source": np.zeros(SLICE, np.int8),
            "substituted": np.zeros(SLICE, bool),
        } | (_draws(rng) if augment_on == "device" else {})
        position += SLICE


def _draws(rng: np.random.Generator) -> Slice:
    """Of what the device does to the images."""
    columns = operation_columns([draw_rand_augment(random.Random(int(rng.integers(2**32)))) for _ in range(SLICE)])
    return {"flip": rng.integers(0, 2, SLICE).astype(bool), "operations": columns[0], "arguments": columns[1]}


def train_alone(
    config: ExperimentConfig,
    runs: str | Path,
    tracker: Tracker | None = None,
    *,
    device: str = "cpu",
    precision: Precision = "float32",
    say: Callable[[str], None] = lambda line: None,
) -> RunFolder:
    """Trains the run `small` in `runs` from its newest checkpoint to the last step."""
    run = RunFolder(f"{runs}/small")
    context = _context(config, run, None, precision, newest_whole_step(run, say))
    train(config, run, dataclasses.replace(context, device=torch.device(device), tracker=tracker, say=say))
    return run


def train_as_one_of(
    group: dist.ProcessGroup | None,
    config: ExperimentConfig,
    runs: Path,
    leave_requested: Callable[[], bool] = lambda: False,
) -> list[float]:
    """Trains the same as one of the workers of a group. Returns the logged losses; an empty list except on rank 0."""
    run = RunFolder(str(runs / "small"))
    losses: list[float] = []
    context = _context(config, run, group, "float32", run.latest_step())
    if group is not None:
        dist.barrier(group)  # all have seen the newest checkpoint before the next is saved
    watched = dataclasses.replace(
        context, leave_requested=leave_requested, watch=lambda done, values: losses.append(values["loss"])
    )
    train(config, run, watched)
    return losses


def _context(
    config: ExperimentConfig, run: RunFolder, group: dist.ProcessGroup | None, precision: Precision, first_step: int
) -> WorkerContext:
    rank, world_size = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))
    every_slice = slices(first_step * config.training.global_batch_size, config.loss.num_prompts)
    return WorkerContext(
        rank=rank,
        world_size=world_size,
        device=torch.device("cpu"),
        group=group,
        precision=precision,
        first_step=first_step,
        slices=itertools.islice(every_slice, rank, None, world_size),
        say=lambda line: None,
        tracker=None,
        watch=lambda done, values: None,
        checkpoint_state={},
    )
