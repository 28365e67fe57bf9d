"""Files of weights as others wrote them: what is read, and what is refused without being run."""

import argparse
import builtins
import contextlib
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from groupvit.foreign_weights import read_weights


class CfgNode(dict):
    """As of yacs, which is not installed: a dictionary with attributes of its own."""

    def __init__(self, entries: dict[str, Any]) -> None:
        super().__init__(entries)
        self.__dict__["__immutable__"] = True


CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"


class Harmful:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.fixture
def yacs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module by this name while pickling; it is gone again when the file is read."""
    import sys
    import types

    for name in ("yacs", "yacs.config"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setattr(sys.modules["yacs.config"], "CfgNode", CfgNode, raising=False)


def test_only_the_tensors_are_taken(tmp_path: Path, yacs: None, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint.pth"
    weights = {"a": torch.randn(3, 2), "counts": torch.tensor(7)}
    content = {
        "model": weights,
        "config": CfgNode({"model": CfgNode({"depths": [6, 3, 3]})}),
        "arguments": argparse.Namespace(epochs=30),
        "max_accuracy": np.float64(52.3),
        "metrics": np.arange(3),
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}},
        "epoch": 30,
    }
    torch.save(content, path)
    monkeypatch.undo()
    found = read_weights(path)
    assert found.tensors.keys() == weights.keys() and found.license is None
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in weights.items())


def test_a_file_may_be_the_weights_alone(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "weights.bin")
    assert list(read_weights(tmp_path / "weights.bin").tensors) == ["a"]


def test_a_prefix_sorts_out_the_weights(tmp_path: Path) -> None:
    save_file({"weights/a": torch.ones(2), "input/image": torch.ones(1)}, tmp_path / "golden.safetensors")
    assert list(read_weights(tmp_path / "golden.safetensors").tensors) == ["a"]


def harmful_calls(mark: Path) -> list[Harmful]:
    return [
        Harmful(os.system, f"touch {mark}"),
        Harmful(os.mkdir, str(mark)),
        Harmful(builtins.open, str(mark), "w"),
        Harmful(builtins.eval, f"open({str(mark)!r}, 'w')"),
        Harmful(getattr, Path(mark), "touch"),
        Harmful(torch.save, [], str(mark)),
    ]


@pytest.mark.parametrize("index", range(6))
@pytest.mark.parametrize("place", ["config", "model"])
def test_code_in_a_file_is_not_run(tmp_path: Path, index: int, place: str) -> None:
    path, mark = tmp_path / "harmful.pth", tmp_path / "mark"
    harmful = harmful_calls(mark)[index]
    torch.save({"model": {"a": torch.ones(1)}, place: harmful}, path)
    with pytest.raises(ValueError, match=r"harmful\.pth") as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)
    assert not mark.exists()


def test_the_harm_would_be_done_by_pickle(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    pickle.loads(pickle.dumps(Harmful(os.system, f"touch {mark}")))
    assert mark.exists()


def compressed(path: Path, whole: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**6))


def stretched(path: Path, whole: bytes) -> None:
    torch.save({"model": {"a": torch.zeros(1).expand(10**12)}}, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path, whole: path.write_bytes(whole[: len(whole) // 2]), "cut short"),
        (lambda path, whole: path.write_bytes(whole[:-30]), "cut short"),
        (lambda path, whole: path.write_bytes(b""), "cut short"),
        (lambda path, whole: path.write_text("not found"), "cut short"),
        (lambda path, whole: path.unlink(), "does not exist"),
        (lambda path, whole: path.write_bytes(pickle.dumps({"model": {}})), "no checkpoint of PyTorch 1.6"),
        (lambda path, whole: torch.save([torch.ones(1)], path), "holds a list"),
        (lambda path, whole: torch.save({"model": {}}, path), "not a dictionary of weights"),
        (lambda path, whole: torch.save({"epoch": 3}, path), "'epoch', which is not a tensor"),
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
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_flipped_bytes_are_a_value_error_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": {"a": torch.randn(10)}, "config": {"lr": 0.1}}, path)
    whole = path.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(whole), 300):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x5A]) + whole[place + 1 :])
        with contextlib.suppress(ValueError):  # any other exception fails the test
            read_weights(path)


def test_a_damaged_safetensors_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.ones(100)}, path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"weights\.safetensors is no safetensors file, or a damaged one"):
        read_weights(path)
