"""Whatever changes in a file of a checkpoint is noticed, and one line says which file."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from groupvit import checkpoint
from groupvit.checkpoint_files import CorruptedError, parse_state, state_content
from groupvit.model import GroupViT
from tests.support.small_model import SMALL


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "step_1"
    torch.manual_seed(0)
    moments = {"exp_avg": torch.randn(5000), "step": torch.tensor(3.0)}
    checkpoint.save(folder, GroupViT(SMALL), state={"step": 1, "name": "ü"}, optimizer_state={"state": {0: moments}})
    return folder


def load_all(folder: Path) -> None:
    checkpoint.load(folder)
    checkpoint.load_optimizer_state(folder)


def test_a_flipped_bit_in_every_percent_of_the_bytes_is_detected(saved: Path) -> None:
    load_all(saved)
    contents = {path: path.read_bytes() for path in sorted(saved.iterdir())}
    assert len(contents) == 3
    total = sum(map(len, contents.values()))
    places = [(path, at) for path, content in contents.items() for at in range(len(content))]
    for percent in range(100):
        path, at = places[percent * total // 100]
        damaged = bytearray(contents[path])
        damaged[at] ^= 1 << percent % 8
        path.write_bytes(damaged)
        with pytest.raises(CorruptedError) as caught:
            load_all(saved)
        assert str(caught.value).startswith(str(path)) and "use another" in str(caught.value)
        assert "\n" not in str(caught.value)
        path.write_bytes(contents[path])
    load_all(saved)


def test_every_bit_of_the_state_counts(saved: Path) -> None:
    content = (saved / "state.json").read_bytes()
    for at in range(len(content)):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[at] ^= 1 << bit
            with pytest.raises(CorruptedError, match=r"^state is corrupted"):
                parse_state(bytes(damaged), "state")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:-1], r"it has \d+ bytes, not \d+ as state\.json says"),
        (lambda content: content + b"\0", r"it has \d+ bytes, not \d+ as state\.json says"),
        (lambda content: b"\0" * len(content), r"its sha256 is not that in state\.json"),
    ],
)
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt"])
def test_files_of_another_length_or_content(
    saved: Path, name: str, change: Callable[[bytes], bytes], message: str
) -> None:
    whole = (saved / name).read_bytes()
    (saved / name).write_bytes(change(whole))
    with pytest.raises(CorruptedError, match=f"{name} is corrupted .{message}.: use another checkpoint"):
        load_all(saved)
    (saved / name).unlink()
    with pytest.raises(CorruptedError, match=f"it has no {name}"):
        load_all(saved)
    (saved / name).write_bytes(whole)


@pytest.mark.parametrize("claim", [None, 2**40], ids=["deflated", "stored, with another size"])
def test_an_optimizer_state_that_unpacks_to_more_is_refused_before_it_takes_memory(
    tmp_path: Path, claim: int | None
) -> None:
    checkpoint.save(tmp_path / "step", GroupViT(SMALL), optimizer_state={"a": torch.zeros(2**24)})
    path = tmp_path / "step/optimizer.pt"
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(drop_crc(archive, name)) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED if claim else zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content[:1000] if claim else content)
        if claim:
            archive.infolist()[-1].file_size = claim  # of the directory, which is written when the file is closed
    assert path.stat().st_size < 2**20
    state = json.loads((tmp_path / "step/state.json").read_text())
    del state["files"], state["sha256"]
    (tmp_path / "step/state.json").write_bytes(state_content(state))
    with pytest.raises(CorruptedError, match=r"optimizer\.pt is a compressed archive, .*: use another") as caught:
        checkpoint.load_optimizer_state(tmp_path / "step")
    assert "\n" not in str(caught.value)


def drop_crc(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    """The entry, without the checksum that torch was told not to compute."""
    entry = archive.getinfo(name)
    if entry.CRC == 0:
        del entry.CRC
    return entry


def test_a_checkpoint_without_digests_loads(saved: Path, tmp_path: Path) -> None:
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    state = json.loads((saved / "state.json").read_text())
    del state["files"], state["sha256"]
    (tmp_path / "state.json").write_bytes(state_content(state))
    assert "sha256" not in json.loads((tmp_path / "state.json").read_text())
    load_all(tmp_path)


@pytest.mark.parametrize("key", ["files", "sha256"])
def test_a_state_with_half_of_the_digests_is_corrupted(saved: Path, key: str) -> None:
    state = json.loads((saved / "state.json").read_text())
    del state[key]
    with pytest.raises(CorruptedError, match="it lacks one of files, sha256"):
        parse_state(json.dumps(state).encode(), "state")


@pytest.mark.parametrize("content", [b"3", b"[]", b"[" * 100_000, b"\xff", b'{"a": '])
def test_what_is_not_a_json_object_is_corrupted(content: bytes) -> None:
    with pytest.raises(CorruptedError, match=r"^state is corrupted") as caught:
        parse_state(content, "state")
    assert "\n" not in str(caught.value)
