"""Files that are no weights, or damaged ones, are refused in a line."""

import contextlib
import gzip
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from groupvit.interop.foreign_weights import read_weights
from tests.support.quantized import quantized


def compressed(path: Path, whole: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**6))


LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 223000000\n"


def archived_by_tar(path: Path, whole: bytes) -> None:
    (path.parent / "groupvit.pth").write_bytes(whole)
    with tarfile.open(path, "w") as archive:
        archive.add(path.parent / "groupvit.pth", "groupvit.pth")


def archived_by_zip(path: Path, whole: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("groupvit.pth", whole)


def within_itself(path: Path, whole: bytes) -> None:
    content: dict[str, Any] = {}
    content["model"] = content
    torch.save(content, path)


def torchscript(path: Path, whole: bytes) -> None:
    """The names in an archive of torch.jit.save."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("net/data.pkl", "net/code/__torch__.py", "net/constants.pkl"):
            archive.writestr(name, b"\x80\x02).")


def old_format(path: Path, kept: int) -> None:
    torch.save({"model": {"a": torch.randn(1000)}}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:kept])


def stretched(path: Path, whole: bytes) -> None:
    torch.save({"model": {"a": torch.zeros(1).expand(10**12)}}, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path, whole: path.write_bytes(whole[: len(whole) // 2]), "cut short"),
        (lambda path, whole: path.write_bytes(whole[:-30]), "cut short"),
        (lambda path, whole: path.write_bytes(b""), "cut short"),
        (lambda path, whole: path.write_text("not found"), "is a text that begins with 'not found', not weights"),
        (lambda path, whole: path.unlink(), "does not exist"),
        (lambda path, whole: path.write_text(LFS_POINTER), "is a Git LFS pointer"),
        (lambda path, whole: path.write_text("\n <!DOCTYPE html><html>Sign in</html>"), "is a web page"),
        (lambda path, whole: path.write_text('{"error": "Not found"}'), 'is a text that begins with \'{"error"'),
        (lambda path, whole: path.write_bytes(gzip.compress(whole)), "is compressed by gzip"),
        (lambda path, whole: path.write_bytes(bytes(range(200, 256)) * 20), "is neither a checkpoint of PyTorch nor"),
        (archived_by_tar, "is a tar archive: extract it"),
        (archived_by_zip, "is a zip archive of groupvit.pth, not a checkpoint: extract it"),
        (lambda path, whole: path.write_bytes(whole.replace(b"data.pkl", b"data.pkx")), "is a zip archive of"),
        (torchscript, "is a TorchScript program"),
        (lambda path, whole: torch.save(torch.nn.Linear(2, 2), path), "holds a torch.nn.modules.linear.Linear, not a"),
        (
            lambda path, whole: torch.save({"model": torch.nn.Linear(2, 2)}, path),
            r"'model' that is a torch.nn.modules.linear.Linear, not .*: save the state_dict\(\)",
        ),
        (
            lambda path, whole: torch.save({"model": {"a": np.ones(3)}}, path),
            "'a', which is not a tensor but of type n",
        ),
        (
            lambda path, whole: torch.save({"model": {3: torch.ones(3)}}, path),
            "has 3 where the name of a tensor belongs",
        ),
        (lambda path, whole: torch.save({"a": torch.ones(3, dtype=torch.complex64)}, path), "complex64"),
        (lambda path, whole: old_format(path, 3000), "claims more numbers than it holds: it is cut short"),
        (lambda path, whole: old_format(path, 300), "corrupted or cut short"),
        (lambda path, whole: old_format(path, 20), "corrupted or cut short"),
        (lambda path, whole: path.write_bytes(pickle.dumps({"model": {}})), "is a plain pickle, not a checkpoint"),
        (lambda path, whole: torch.save([torch.ones(1)], path), "holds a list"),
        (lambda path, whole: torch.save({"a\x1b[2J\nb": torch.ones(1)}, path), "where the name of a tensor belongs"),
        (lambda path, whole: torch.save({"a\x1b[2J\nb": "text"}, path), "which is not a tensor but of type str"),
        (within_itself, "has 'model', which is not a tensor"),
        (lambda path, whole: torch.save(torch.ones(1), path), "holds a tensor, not a dictionary of weights"),
        (lambda path, whole: torch.save({"a": quantized()}, path), "'a', which is not a tensor but .*_rebuild_qtensor"),
        (
            lambda path, whole: torch.save({"a": torch.ones(1).to("meta")}, path),
            "'a', which is not a tensor but .*meta",
        ),
        (lambda path, whole: torch.save({"a": torch.ones(1).to(torch.uint16)}, path), "but .*_rebuild_tensor_v3"),
        (lambda path, whole: torch.save({"model": {}}, path), "not a dictionary of weights"),
        (lambda path, whole: torch.save({"epoch": 3}, path), "'epoch', which is not a tensor but of type int"),
        (lambda path, whole: torch.save({"a": torch.eye(3).to_sparse()}, path), "sparse"),
        (compressed, "compressed archive"),
        (stretched, "claims more numbers than it holds"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path: Path, damage: Any, message: str) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": {"a": torch.randn(1000)}}, path)
    damage(path, path.read_bytes())
    with pytest.raises(ValueError, match=message) as caught:
        read_weights(path)
    assert str(caught.value).isprintable() and str(path) in str(caught.value)


def test_flipped_bytes_are_a_value_error_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": {"a": torch.randn(10)}, "config": {"lr": 0.1}}, path)
    whole = path.read_bytes()
    torch.save({"model": {"a": torch.randn(10)}}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for place in np.random.default_rng(0).integers(0, len(whole), 300):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x5A]) + whole[place + 1 :])
        with contextlib.suppress(ValueError):  # any other exception fails the test
            read_weights(path)
    old = (tmp_path / "old.pth").read_bytes()
    for place in range(0, len(old), 3):
        path.write_bytes(old[:place] + bytes([old[place] ^ 0x5A]) + old[place + 1 :])
        with contextlib.suppress(ValueError):
            read_weights(path)


def test_a_checksum_is_checked_where_there_is_one(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    options = torch.serialization.get_crc32_options()
    try:
        torch.serialization.set_crc32_options(False)
        torch.save({"a": torch.arange(100.0), "b": torch.ones(0)}, path)
    finally:
        torch.serialization.set_crc32_options(options)
    found = read_weights(path).tensors
    assert torch.equal(found["a"], torch.arange(100.0)) and found["b"].shape == (0,)
    torch.save({"a": torch.arange(100.0)}, path)
    path.write_bytes(path.read_bytes().replace(torch.tensor([57.0]).numpy().tobytes(), bytes(4)))
    with pytest.raises(ValueError, match="corrupted or cut short"):
        read_weights(path)


def test_the_suffix_does_not_matter(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "weights.pth")
    torch.save({"a": torch.ones(2)}, tmp_path / "weights.safetensors")
    for name in ("weights.pth", "weights.safetensors"):
        assert read_weights(tmp_path / name).tensors["a"].tolist() == [1, 1]


def test_a_damaged_safetensors_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.ones(100)}, path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"weights\.safetensors is a corrupted safetensors file"):
        read_weights(path)
