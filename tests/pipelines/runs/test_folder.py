import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.runs.folder import RunFolder
from tests.support.training_state import training_state


def write(content: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_text(content)
        (folder / "state.json").write_text(json.dumps(training_state(1, content=content)))

    return make


def test_description(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path / "runs" / "a"))
    assert run.read_description() is None
    description = {"job_id": "x", "fixed": {"ingest.slice_size": 4, "loss.num_prompts": 3}, "config": {}, "later": [1]}
    run.write_description(description)
    assert RunFolder(str(tmp_path / "runs" / "a")).read_description() == description


def test_keeps_the_newest_complete_checkpoints(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path))
    assert run.latest_step() == 0
    for step in (5, 10, 15):
        run.save_checkpoint(step, write(str(step)))
    run.delete_old_checkpoints(2)
    assert run.checkpoint_steps() == [10, 15]
    assert not (tmp_path / "checkpoints" / "step-00000005").exists()
    # One that was cut off while it was written, or deleted, has no state.json.
    (tmp_path / "checkpoints" / "step-00000020").mkdir()
    (tmp_path / "checkpoints" / "step-00000020" / "model.safetensors").write_text("half")
    (tmp_path / "checkpoints" / ".step-00000025.partial-7").mkdir()
    (tmp_path / "checkpoints" / ".step-00000025.partial-7" / "state.json").write_text("{}")
    assert run.latest_step() == 15
    assert run.read_state(15)["content"] == "15"
    with run.local_checkpoint(15) as folder:
        assert (folder / "model.safetensors").read_text() == "15"
    run.save_checkpoint(30, write("30"))
    assert not (tmp_path / "checkpoints" / ".step-00000025.partial-7").exists()


def test_checkpoints_that_are_still_needed_are_kept(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path))
    for step in (5, 10, 15, 20):
        run.save_checkpoint(step, write(str(step)))
    run.delete_old_checkpoints(1, others={10, 99})
    assert run.checkpoint_steps() == [10, 20]


def test_checkpoint_that_is_there_is_not_written_again(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path))
    run.save_checkpoint(5, write("first"))
    run.save_checkpoint(5, write("second"))
    assert run.read_state(5)["content"] == "first"


def test_unreachable_store_is_named() -> None:
    with pytest.raises(ValueError, match="nosuch://x/run"):
        RunFolder("nosuch://x/run").read_description()
