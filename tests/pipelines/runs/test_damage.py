"""A run goes on from the newest checkpoint that is whole."""

from pathlib import Path

import pytest
import torch

from groupvit import checkpoint
from groupvit.model import GroupViT
from pipelines import storage
from pipelines.runs.checkpoints import local_checkpoint
from pipelines.runs.damage import newest_whole_step
from pipelines.runs.folder import RunFolder
from tests.support.edited_checkpoint import edit_state
from tests.support.small_model import SMALL
from tests.support.training_state import training_state

FILES = ("model.safetensors", "optimizer.pt", "state.json")


def make_run(uri: str, steps: tuple[int, ...] = (5, 10, 15)) -> RunFolder:
    run = RunFolder(uri)
    run.write_description({"job_id": "mine", "fixed": {"ingest.slice_size": 4}, "config": {}})
    torch.manual_seed(0)
    for step in steps:
        save(run, step)
    return run


def save(run: RunFolder, step: int) -> None:
    model, state = GroupViT(SMALL), training_state(step, job_id="mine")
    moments = {"exp_avg": torch.ones(100)}
    run.save_checkpoint(step, lambda folder: checkpoint.save(folder, model, state=state, optimizer_state=moments))


def damage(run: RunFolder, step: int, name: str) -> None:
    uri = f"{run.checkpoint_uri(step)}/{name}"
    content = bytearray(storage.read_bytes(uri))
    content[len(content) // 2] ^= 4
    storage.write_bytes(uri, bytes(content))


def test_whole_checkpoints_stay(tmp_path: Path) -> None:
    lines: list[str] = []
    assert newest_whole_step(make_run(str(tmp_path)), lines.append) == 15
    assert newest_whole_step(RunFolder(str(tmp_path / "nothing")), lines.append) == 0
    assert not lines


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_newest_checkpoint_is_set_aside(tmp_path: Path, name: str) -> None:
    run, lines = make_run(str(tmp_path)), []
    damage(run, 15, name)
    assert newest_whole_step(run, lines.append) == run.latest_step() == 10
    [line] = lines
    place = tmp_path / "checkpoints/damaged-step-00000015"
    assert line.startswith(f"{run.checkpoint_uri(15)}/{name} is corrupted (")
    assert line.endswith(f"): moved to {place}; the run goes on from step 10")
    assert {file.name for file in place.iterdir()} == set(FILES)
    assert newest_whole_step(run, lines.append) == 10 and len(lines) == 1

    save(run, 15)  # the run comes by that step again, and it is damaged again
    damage(run, 15, name)
    assert newest_whole_step(run, lines.append) == 10 and len(lines) == 2


def test_several_damaged_checkpoints(tmp_path: Path) -> None:
    run, lines = make_run(str(tmp_path)), []
    (tmp_path / "checkpoints/step-00000015/model.safetensors").unlink()
    (tmp_path / "checkpoints/step-00000010/optimizer.pt").write_bytes(b"")
    damage(run, 5, "state.json")
    assert newest_whole_step(run, lines.append) == run.latest_step() == 0
    assert [line.rpartition("; ")[2] for line in lines] == [
        "the run goes on from step 10",
        "the run goes on from step 5",
        "the run goes on from the start",
    ]
    assert "model.safetensors is missing: moved to" in lines[0]


@pytest.mark.parametrize("name", FILES)
def test_in_object_storage(bucket: str, name: str) -> None:
    run, lines = make_run(f"{bucket}/run", (5, 10)), []
    damage(run, 10, name)
    assert newest_whole_step(run, lines.append) == run.latest_step() == 5
    assert lines[0].endswith(f"moved to {run.checkpoint_uri(10)}/damaged-state.json; the run goes on from step 5")
    save(run, 10)
    assert newest_whole_step(run, lines.append) == 10 and len(lines) == 1


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    run = make_run(str(tmp_path))
    edit_state(Path(run.checkpoint_uri(15)), job_id="theirs")
    message = r"step-00000015/state\.json is of another run \(job_id theirs; .* mine\)"
    with pytest.raises(ValueError, match=message) as caught:
        newest_whole_step(run, print)
    assert "\n" not in str(caught.value)
    assert run.latest_step() == 15


def test_a_damaged_state_is_named_when_it_is_read(tmp_path: Path) -> None:
    run = make_run(str(tmp_path))
    damage(run, 15, "state.json")
    with pytest.raises(ValueError, match=r"step-00000015/state\.json is corrupted .* use another checkpoint"):
        run.read_state(15)


def test_a_damaged_file_in_object_storage_is_named_by_its_uri(bucket: str) -> None:
    run = make_run(f"{bucket}/run", (5,))
    damage(run, 5, "model.safetensors")
    message = rf"^{run.checkpoint_uri(5)}/model\.safetensors is corrupted \(.*\): use another checkpoint$"
    with pytest.raises(ValueError, match=message), local_checkpoint(run.uri) as folder:
        checkpoint.load(folder)
    with pytest.raises(ValueError, match=message), run.local_checkpoint(5) as folder:
        checkpoint.load(folder)
    with (
        pytest.raises(ValueError, match="neither a checkpoint nor a run with one: it has no model"),
        local_checkpoint(f"{bucket}/nothing"),
    ):
        pass
    with pytest.raises(storage.StorageError, match="no bucket 'elsewhere'"), local_checkpoint("s3://elsewhere/run"):
        pass
