"""Files of weights as others wrote them: what is read, and what is refused without being run."""

import argparse
import builtins
import contextlib
import gzip
import os
import pickle
import sys
import tarfile
import types
import warnings
import zipfile
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from groupvit.interop.foreign_weights import read_weights


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


def named_class(monkeypatch: pytest.MonkeyPatch, module: str, name: str) -> type:
    """A class of a package that is not installed, to be pickled."""
    for place in (module.partition(".")[0], module):
        monkeypatch.setitem(sys.modules, place, types.ModuleType(place))
    made = type(name, (), {"__module__": module})
    monkeypatch.setattr(sys.modules[module], name, made, raising=False)
    return made


def with_state(kind: type, **state: Any) -> Any:
    made = kind()
    made.__dict__.update(state)
    return made


def transposed(tensor: Tensor) -> Tensor:
    """The same numbers, matrices by columns."""
    return tensor.mT.contiguous().mT if tensor.ndim == 2 else tensor


def quantized() -> Tensor:
    with warnings.catch_warnings(action="ignore"):  # PyTorch is about to remove them
        return torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)


WRAPPED: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "model": lambda weights: {"epoch": 3, "model": weights},
    "state_dict": lambda weights: {"state_dict": weights, "meta": {"epoch": 30}},
    "model_state_dict": lambda weights: {"model_state_dict": OrderedDict(weights)},
    "nested": lambda weights: {"model": {"state_dict": weights}},
    "names beside them": lambda weights: {"model": "groupvit_small", "ema": None, "state_dict": weights},
    "numbers of other kinds beside them": lambda weights: {
        "model": weights,
        "scales": [quantized(), torch.ones(2).to(torch.uint16), torch.ones(2).to(torch.float8_e4m3fn)],
    },
    "distributed": lambda weights: {"model": {f"module.{name}": tensor for name, tensor in weights.items()}},
    "compiled and distributed": lambda weights: {f"module._orig_mod.{name}": weights[name] for name in weights},
    "Lightning": lambda weights: {
        "state_dict": {f"model.{name}": tensor for name, tensor in weights.items()},
        "hyper_parameters": argparse.Namespace(rate=1),
        "pytorch-lightning_version": "2.0",
    },
    "average": lambda weights: {"model": weights, "model_ema": {"a": torch.zeros(1)}},
    "dictionary of another class": lambda weights: defaultdict(None, model=Counter(weights)),
    "parameters": lambda weights: {"model": {name: torch.nn.Parameter(weights[name], False) for name in weights}},
    "views": lambda weights: {"model": {name: torch.stack([weights[name]] * 3)[1] for name in weights}},
    "transposed": lambda weights: {"model": {name: transposed(weights[name]) for name in weights}},
}


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 4}])
@pytest.mark.parametrize("wrapping", WRAPPED)
def test_weights_are_found_where_training_scripts_put_them(
    tmp_path: Path, wrapping: str, options: dict[str, Any]
) -> None:
    path = tmp_path / "checkpoint.pth"
    weights = {"a.weight": torch.randn(3, 2), "a.bias": torch.randn(2).half(), "scale": torch.tensor(7.0)}
    weights |= {"counts": torch.tensor(2**40), "b": torch.randn(2, 3).bfloat16(), "none": torch.zeros(0, 4)}
    torch.save(WRAPPED[wrapping](weights), path, **options)
    found = read_weights(path).tensors
    assert found.keys() == weights.keys()
    for name, tensor in weights.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def test_what_training_scripts_save_beside_weights_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint.pth"
    with monkeypatch.context() as patched:
        node = named_class(patched, "omegaconf.nodes", "AnyNode")
        inner = with_state(node, _val=3, _metadata=None)
        config = with_state(named_class(patched, "omegaconf.dictconfig", "DictConfig"), _content={"depth": inner})
        parameters = [torch.nn.Parameter(torch.ones(2))]
        optimizer = torch.optim.AdamW(parameters)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
        content = {
            "model": {"a": torch.ones(2)},
            "config": config,
            "optimizer": optimizer.state_dict(),
            "lr_scheduler": schedule,
            "metrics": defaultdict(float, max_miou=np.float64(41.2)),
            "history": np.arange(5),
            "output": Path("/tmp/x"),
            "activation": torch.nn.functional.gelu,
            "device": torch.device("cpu"),
            "dtype": torch.float16,
            "types": list[int],
            "license": "Mine.",
        }
        torch.save(content, path)
    found = read_weights(path)
    assert found.license == "Mine." and {name: tensor.tolist() for name, tensor in found.tensors.items()} == {
        "a": [1, 1]
    }
    assert "omegaconf" not in sys.modules


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
        (lambda path, whole: old_format(path, 300), "damaged or cut short"),
        (lambda path, whole: old_format(path, 20), "damaged or cut short"),
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
    with pytest.raises(ValueError, match="damaged or cut short"):
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
    with pytest.raises(ValueError, match=r"weights\.safetensors is a damaged safetensors file"):
        read_weights(path)
