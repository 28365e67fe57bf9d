"""Checkpoints are written beside the training, whole and in order, or the training ends."""

import dataclasses
import hashlib
import resource
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from groupvit.config import OptimizerConfig
from groupvit.model import GroupViT
from groupvit.optim import build_optimizer
from pipelines import storage
from pipelines.runs.damage import newest_whole_step
from pipelines.runs.folder import RunFolder
from pipelines.training.checkpoint_writer import CheckpointWriter, HostCopies
from tests.support.lone_worker import lone_config, train_alone
from tests.support.small_model import SMALL


class HeldRun(RunFolder):
    """A run that publishes checkpoints only after `released` is set."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.released = threading.Event()

    def save_checkpoint(self, step: int, write: Callable[[Path], None]) -> None:
        assert self.released.wait(60)
        super().save_checkpoint(step, write)


@pytest.fixture
def model() -> GroupViT:
    torch.manual_seed(0)
    return GroupViT(SMALL)


@pytest.fixture
def optimizer(model: GroupViT) -> torch.optim.Optimizer:
    return build_optimizer(model, OptimizerConfig())


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """Let no file grow beyond this, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_training_goes_on_while_a_checkpoint_is_written(
    model: GroupViT, optimizer: torch.optim.Optimizer, tmp_path: Path
) -> None:
    run = HeldRun(str(tmp_path))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with CheckpointWriter(run, lone_config(tmp_path)) as writer:
        writer.save(1, model, optimizer, None, {"step": 1})
        writer.check()
        assert run.checkpoint_steps() == []
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1)
        second = threading.Thread(target=writer.save, args=(2, model, optimizer, None, {"step": 2}))
        second.start()
        run.released.set()
        second.join()
        assert 1 in run.checkpoint_steps(), "the second waits for the first"
        writer.wait()
        assert run.checkpoint_steps() == [1, 2]
    for step in (1, 2):
        saved = load_file(Path(run.checkpoint_uri(step)) / "model.safetensors")
        for name, parameter in model.named_parameters():
            assert torch.equal(saved[name], before[name] if step == 1 else parameter), name


def test_an_error_of_the_loop_is_raised_when_the_checkpoint_is_published(
    model: GroupViT, optimizer: torch.optim.Optimizer, tmp_path: Path
) -> None:
    run = HeldRun(str(tmp_path))

    def fail() -> None:
        with CheckpointWriter(run, lone_config(tmp_path)) as writer:
            writer.save(1, model, optimizer, None, {"step": 1})
            run.released.set()
            raise RuntimeError("a worker was lost")

    with pytest.raises(RuntimeError, match="a worker was lost"):
        fail()
    assert run.checkpoint_steps() == [1]


def test_only_the_newest_are_kept(model: GroupViT, optimizer: torch.optim.Optimizer, tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path))
    with CheckpointWriter(run, lone_config(tmp_path, keep_checkpoints=2)) as writer:
        for step in range(1, 5):
            writer.save(step, model, optimizer, None, {"step": step})
    assert run.checkpoint_steps() == [3, 4]


def test_a_store_that_fails_ends_the_training(
    model: GroupViT, optimizer: torch.optim.Optimizer, bucket: str, tmp_path: Path
) -> None:
    with pytest.raises(storage.StorageError, match="there is no bucket 'elsewhere'"):
        train_alone(lone_config(tmp_path, num_steps=50), "s3://elsewhere/runs")
    writer = CheckpointWriter(RunFolder("s3://elsewhere/run"), lone_config(tmp_path))
    writer.save(1, model, optimizer, None, {"step": 1})
    for _ in range(2):
        with pytest.raises(storage.StorageError, match="there is no bucket 'elsewhere'"):
            writer.wait()
    for again in (writer.check, lambda: writer.save(2, model, optimizer, None, {})):
        with pytest.raises(storage.StorageError, match="there is no bucket 'elsewhere'"):
            again()


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt"])
def test_a_full_disk_ends_the_training_and_leaves_the_last_checkpoint(tmp_path: Path, name: str) -> None:
    config = lone_config(tmp_path)
    run = train_alone(config, tmp_path)
    folder = Path(run.checkpoint_uri(2))
    longer = dataclasses.replace(config, training=dataclasses.replace(config.training, num_steps=4))
    limit = (folder / name).stat().st_size - 1
    with largest_file(limit), pytest.raises(OSError, match=f"File too large: .*step-00000003/{name}") as caught:
        train_alone(longer, tmp_path)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["step-00000001", "step-00000002"]
    assert train_alone(longer, tmp_path).checkpoint_steps() == [2, 3, 4]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "state.json"])
def test_a_run_with_a_damaged_newest_checkpoint_ends_with_the_same_bits(tmp_path: Path, name: str) -> None:
    config = lone_config(tmp_path, num_steps=4, keep_checkpoints=None, ema_decay=0.9)
    run = train_alone(config, tmp_path)
    last, damaged = Path(run.checkpoint_uri(4)), Path(run.checkpoint_uri(3)) / name
    expected = {file: (last / file).read_bytes() for file in ("model.safetensors", "optimizer.pt")}
    shutil.rmtree(last)
    content = bytearray(damaged.read_bytes())
    content[len(content) // 3] ^= 16
    damaged.write_bytes(content)
    lines: list[str] = []
    train_alone(config, tmp_path, say=lines.append)
    assert lines[0].startswith(f"{damaged} is corrupted (") and lines[0].endswith("the run goes on from step 2")
    assert {file: (last / file).read_bytes() for file in expected} == expected
    assert run.checkpoint_steps() == [1, 2, 3, 4]


def test_a_flipped_bit_in_any_percent_of_the_newest_checkpoint_changes_no_bit_of_the_end(tmp_path: Path) -> None:
    """For each percent of its bytes, and the last: the run goes on from the one before, which stays as it is. Every
    tenth time it is also trained to its end."""
    config = lone_config(tmp_path, keep_checkpoints=None, ema_decay=0.9)
    run = train_alone(config, tmp_path)
    before, newest = Path(run.checkpoint_uri(1)), Path(run.checkpoint_uri(2))
    contents = {path: path.read_bytes() for path in sorted(newest.iterdir())}
    whole, expected = digests(before), digests(newest, but="state.json")
    places = [(path, at) for path, content in contents.items() for at in range(len(content))]
    for percent in range(101):
        file, at = places[min(percent * len(places) // 100, len(places) - 1)]
        damaged = bytearray(contents[file])
        damaged[at] ^= 1 << percent % 8
        file.write_bytes(damaged)
        lines: list[str] = []
        if percent % 10 == 0:
            train_alone(config, tmp_path, say=lines.append)
            assert digests(newest, but="state.json") == expected, percent
        else:
            assert newest_whole_step(run, lines.append) == run.latest_step() == 1
            newest.mkdir()
        assert lines[0].startswith(f"{file} is corrupted (") and lines[0].endswith("the run goes on from step 1"), lines
        assert digests(before) == whole, percent
        for path, content in contents.items():
            path.write_bytes(content)
    assert file.name == "state.json"


def digests(folder: Path, but: str = "") -> dict[str, str]:
    """sha256 of the files of a folder by their names, one left out."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.name != but}


def test_copies_keep_their_memory() -> None:
    copies = HostCopies()
    tensors = {"a": [torch.ones(3), {"b": torch.zeros(2, dtype=torch.int64)}], "rate": 0.5}
    first = copies.copy(tensors)
    tensors["a"][0].add_(1)  # pyright: ignore
    assert first["a"][0].tolist() == [1, 1, 1] and first["rate"] == 0.5 and first["a"][1]["b"].dtype == torch.int64
    second = copies.copy(tensors)
    assert second["a"][0].data_ptr() == first["a"][0].data_ptr() and second["a"][0].tolist() == [2, 2, 2]
    assert copies.copy({"a": [torch.ones(4)]})["a"][0].shape == (4,)
