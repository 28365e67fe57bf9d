"""Amendments in the loop and in the run's record."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from groupvit import checkpoint
from pipelines.experiments.amendments import as_text, texts_in, texts_of
from pipelines.experiments.config import ExperimentConfig
from pipelines.runs.damage import newest_whole_step
from pipelines.runs.folder import RunFolder
from pipelines.training.amending import new_amendments, record
from tests.support.lone_worker import lone_config, train_alone

NUM_STEPS = 12
AMENDMENTS = ("from 4: optimizer.learning_rate=0.01", "skip 6:8")


def config_of(folder: Path, *amendments: str) -> ExperimentConfig:
    config = lone_config(
        folder, num_steps=NUM_STEPS, keep_checkpoints=None, log_every_n_steps=1, ema_decay=0.9, max_grad_norm_ratio=50.0
    )
    return dataclasses.replace(config, amendments=amendments)


def model_files(run: RunFolder) -> dict[int, bytes]:
    """Step → the averaged weights."""
    steps = run.checkpoint_steps()
    return {step: Path(run.checkpoint_uri(step), "model.safetensors").read_bytes() for step in steps}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run without amendments, and one that had them from its start."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("plain", "amended")}
    train_alone(config_of(folders["plain"]), folders["plain"])
    train_alone(config_of(folders["amended"], *AMENDMENTS), folders["amended"])
    return folders


def test_nothing_changes_before_and_nothing_in_skipped_steps(runs: dict[str, Path]) -> None:
    plain, changed = (model_files(RunFolder(f"{runs[name]}/small")) for name in ("plain", "amended"))
    assert [step for step in plain if plain[step] == changed[step]] == [1, 2, 3, 4]
    assert changed[6] == changed[7] == changed[8] != changed[9]
    assert changed[5] != changed[6]
    states = [checkpoint.load_state(Path(RunFolder(f"{runs['amended']}/small").checkpoint_uri(12)))]
    assert states[0]["guard"]["skipped_steps"] == 0  # of those that would do harm


@pytest.mark.parametrize("killed_at", [1, 3, 4, 5, 6, 7, 8, 11])
def test_a_run_that_is_amended_later_has_the_same_bits(runs: dict[str, Path], tmp_path: Path, killed_at: int) -> None:
    """Up to step 4 without amendments, the kill before, at or after them, and on from the newest checkpoint."""
    source = RunFolder(f"{runs['plain' if killed_at <= 4 else 'amended']}/small")
    run = RunFolder(str(tmp_path / "small"))
    shutil.copytree(source.checkpoint_uri(killed_at), run.checkpoint_uri(killed_at))
    train_alone(config_of(tmp_path, *AMENDMENTS), tmp_path)
    expected = RunFolder(f"{runs['amended']}/small")
    assert model_files(run)[NUM_STEPS] == model_files(expected)[NUM_STEPS]
    states = [
        torch.load(Path(each.checkpoint_uri(NUM_STEPS), "optimizer.pt"), weights_only=True) for each in (run, expected)
    ]
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


def recorded_run(folder: Path, step: int) -> RunFolder:
    """The folder of a run whose newest checkpoint is of a step."""
    run = RunFolder(str(folder / "small"))
    run.write_description({"job_id": "1", "fixed": {"ingest.slice_size": 4}, "config": {}})
    Path(run.checkpoint_uri(step)).mkdir(parents=True)
    (Path(run.checkpoint_uri(step)) / "state.json").write_text("{}")
    return run


def test_the_record_says_who_and_when_and_is_followed(tmp_path: Path) -> None:
    run = recorded_run(tmp_path, 3)
    config = config_of(tmp_path, "from 4 : optimizer.learning-rate=1e-2", "from 4: optimizer.learning_rate=0.01")
    new = new_amendments(config, run, [])
    assert [each["text"] for each in new] == [AMENDMENTS[0]]
    record(run, new)
    description = run.read_description()
    assert description is not None and description["amendments"] == new
    assert new[0]["after_step"] == 3 and new[0]["by"] and new[0]["at"].endswith("+00:00")
    assert as_text(new).startswith(f"{AMENDMENTS[0]} (by {new[0]['by']}, {new[0]['at']}, after 3)")
    assert texts_in(as_text([*new, *new])) == [AMENDMENTS[0]] * 2 and texts_in("") == []
    assert new_amendments(config, run, new) == []  # asked for once more
    assert texts_of(description) == [AMENDMENTS[0]]
    record(run, new_amendments(dataclasses.replace(config, amendments=AMENDMENTS[1:]), run, new))
    assert texts_of(run.read_description() or {}) == list(AMENDMENTS)


def test_one_that_begins_before_the_newest_checkpoint_is_refused(tmp_path: Path) -> None:
    run = recorded_run(tmp_path, 5)
    with pytest.raises(ValueError, match=r"begins before the newest checkpoint .* of step 5: give 5 or a later step"):
        new_amendments(config_of(tmp_path, *AMENDMENTS), run, [])
    assert "amendments" not in json.loads((tmp_path / "small/run.json").read_text())


def test_a_checkpoint_of_workers_that_did_not_know_of_it_is_not_used(runs: dict[str, Path], tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path / "small"))
    for step, name in ((4, "plain"), (5, "plain"), (6, "amended")):
        source = RunFolder(f"{runs[name]}/small")
        shutil.copytree(source.checkpoint_uri(step), run.checkpoint_uri(step))
    entry = {"text": AMENDMENTS[0], "from_step": 4, "by": "x", "at": "y", "after_step": 3}
    description = {"job_id": "1", "fixed": {"ingest.slice_size": 4}, "config": {}, "amendments": [entry]}
    run.write_description(description)
    warnings: list[str] = []
    assert newest_whole_step(run, warnings.append) == 6 and not warnings
    run.set_aside(6)
    assert newest_whole_step(run, warnings.append) == 4
    assert len(warnings) == 1 and f"does not follow {AMENDMENTS[0]!r}: moved to " in warnings[0]


def test_a_run_that_went_on_meanwhile_is_not_amended(tmp_path: Path) -> None:
    run = recorded_run(tmp_path, 3)
    new = new_amendments(config_of(tmp_path, *AMENDMENTS), run, [])
    recorded_run(tmp_path, 5)
    with pytest.raises(ValueError, match=r"has got to step 5 meanwhile: give a later step"):
        record(run, new)
    assert "amendments" not in json.loads((tmp_path / "small/run.json").read_text())
