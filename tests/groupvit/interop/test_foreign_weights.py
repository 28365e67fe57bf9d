"""Files of weights as others wrote them: what is read, and what is refused without being run."""

import argparse
import builtins
import os
import pickle
import sys
import types
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
from tests.support.quantized import quantized


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
