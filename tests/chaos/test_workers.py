"""Any number of workers gives the same bits: weights, optimiser, average, every loss, and which steps are skipped."""

import dataclasses
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from groupvit import training
from groupvit.config import LossConfig
from groupvit.heads import TowerFeatures
from pipelines.experiments.config import ExperimentConfig
from pipelines.runs.folder import RunFolder
from pipelines.runs.skipped import skipped_steps
from tests.support.lone_worker import SLICE, lone_config, slices, train_as_one_of
from tests.support.small_model import SMALL
from tests.support.torch_workers import run_workers

NUM_STEPS, NUM_SLICES = 12, 12
"""Steps of a run, and slices of a step."""
BAD_STEP = 6
"""Step with a NaN in one slice: all workers skip it."""
assert SMALL.image.assignment == "hard" and SMALL.image.stochastic_depth > 0
LOSSES = {
    "paper": LossConfig(),
    "mixture": LossConfig(multi_label_match="mixture"),
    "shared positives": LossConfig(shared_positives=True),
}
"""Losses of the runs, all with prompts."""


def config_of(case: str, runs: Path) -> ExperimentConfig:
    config = lone_config(
        runs,
        num_steps=NUM_STEPS,
        global_batch_size=SLICE * NUM_SLICES,
        checkpoint_every_n_steps=5,
        keep_checkpoints=None,
        log_every_n_steps=1,
        ema_decay=0.9,
        max_grad_norm_ratio=1.2,
    )
    return dataclasses.replace(config, loss=LOSSES[case])


@contextmanager
def planted_nan() -> Iterator[None]:
    """Puts a NaN into what the towers make of one slice, on whichever worker it comes."""
    compute = training.tower_features
    position = (BAD_STEP * NUM_SLICES + 7) * SLICE
    bad = next(slices(position, 3))["token_ids"][:, 0]

    def compute_or_break(*arguments: Any) -> TowerFeatures:
        features = compute(*arguments)
        if not torch.equal(arguments[2].token_ids[:, 0], torch.from_numpy(bad)):
            return features
        return dataclasses.replace(features, tensors=(features.tensors[0] * torch.nan, *features.tensors[1:]))

    with mock.patch.object(training, "tower_features", compute_or_break):
        yield


def train_all(group: dist.ProcessGroup | None, folder: str) -> dict[str, list[float]]:
    with planted_nan():
        return {
            case: train_as_one_of(group, config_of(case, Path(folder) / case), Path(folder) / case) for case in LOSSES
        }


def digest(run: RunFolder, step: int) -> str:
    """SHA-256 of the model's file, and of all numbers of the optimiser's state and of the raw weights."""
    folder = Path(run.checkpoint_uri(step))
    total = hashlib.sha256((folder / "model.safetensors").read_bytes())
    saved = torch.load(folder / "optimizer.pt", weights_only=True)
    for state in saved["optimizer"]["state"].values():
        for name in sorted(state):
            total.update(state[name].numpy().tobytes())
    for name in sorted(saved["raw_model"]):
        total.update(saved["raw_model"][name].numpy().tobytes())
    return total.hexdigest()


def digests(folder: Path, case: str) -> list[str]:
    run = RunFolder(str(folder / case / "small"))
    assert run.checkpoint_steps() == [5, 10, NUM_STEPS]
    return [digest(run, step) for step in run.checkpoint_steps()]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[float]]]:
    """The runs of one worker, and their losses."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("alone")
    try:
        return folder, train_all(None, str(folder))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "num_workers", [5, *(pytest.param(number, marks=pytest.mark.slow) for number in (2, 3, 4, 6, 12))]
)
def test_the_number_of_workers_does_not_change_a_bit(
    alone: tuple[Path, dict[str, list[float]]], tmp_path: Path, num_workers: int
) -> None:
    folder, expected = alone
    found = run_workers(train_all, num_workers, str(tmp_path))
    for case in LOSSES:
        assert len(expected[case]) == NUM_STEPS and expected[case][-1] != expected[case][0]
        assert found[0][case] == expected[case], case
        assert digests(tmp_path, case) == digests(folder, case), case
        skipped = [skipped_steps(RunFolder(str(place / case / "small"))) for place in (folder, tmp_path)]
        assert skipped[0] == skipped[1] and BAD_STEP in skipped[0]


@pytest.mark.slow
def test_a_run_that_changes_its_number_of_workers_has_the_same_bits(
    alone: tuple[Path, dict[str, list[float]]], tmp_path: Path
) -> None:
    """From step 5 on five workers, from step 10 on three, each time with other shares of a step's slices."""
    folder, _ = alone
    for step, num_workers in ((5, 5), (10, 3)):
        for case in LOSSES:
            run = RunFolder(str(tmp_path / f"{step}" / case / "small"))
            Path(run.checkpoint_uri(step)).parent.mkdir(parents=True)
            Path(run.checkpoint_uri(step)).symlink_to(
                RunFolder(str(folder / case / "small")).checkpoint_uri(step), target_is_directory=True
            )
        run_workers(train_all, num_workers, str(tmp_path / f"{step}"))
        for case in LOSSES:
            run = RunFolder(str(tmp_path / f"{step}" / case / "small"))
            assert digest(run, NUM_STEPS) == digests(folder, case)[-1], case
