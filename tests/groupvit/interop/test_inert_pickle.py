"""Pickles that would do harm, by every way a pickle has to call something, do none; and plain values come back."""

import builtins
import contextlib
import functools
import io
import operator
import os
import pickle
import subprocess
import sys
from collections import Counter, OrderedDict, defaultdict
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import torch

from groupvit.interop.foreign_weights import read_weights
from groupvit.interop.inert_pickle import StandIn, UnsafeCallError, load


class Harmful:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call

    def __call__(self) -> None:
        """Only so that another one may call it."""


def read(pickled: bytes) -> Any:
    return load(io.BytesIO(pickled), lambda identifier: identifier)


def touching(mark: Path) -> dict[str, Harmful]:
    """Objects each of which makes the file when it is unpickled."""
    command, code = f"touch {mark}", f"open({str(mark)!r}, 'w')"
    return {
        "os.system": Harmful(os.system, command),
        "os.mkdir": Harmful(os.mkdir, str(mark)),
        "subprocess": Harmful(subprocess.check_call, ["touch", str(mark)]),
        "Popen": Harmful(subprocess.Popen, ["touch", str(mark)]),
        "eval": Harmful(builtins.eval, code),
        "exec": Harmful(builtins.exec, code),
        "open": Harmful(builtins.open, str(mark), "w"),
        "import": Harmful(builtins.__import__, "os"),
        "torch.save": Harmful(torch.save, [], str(mark)),
        "getattr": Harmful(Harmful(getattr, Path(mark), "touch")),
        "partial": Harmful(functools.partial(os.system, command)),
        "methodcaller": Harmful(operator.methodcaller("touch"), Path(mark)),
        "map": Harmful(list, Harmful(map, os.system, [command])),
        "apply": Harmful(operator.call, os.system, command),
    }


INERT = ("partial", "methodcaller", "map", "apply")
"""They reach the function through an object of another class, which is a stand-in: the file can be read."""


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", touching(Path("mark")))
def test_nothing_is_called(tmp_path: Path, kind: str, protocol: int) -> None:
    mark = tmp_path / "mark"
    pickled = pickle.dumps({"harm": touching(mark)[kind]}, protocol)
    if kind in INERT:
        assert isinstance(read(pickled)["harm"], StandIn)
    else:
        with pytest.raises(UnsafeCallError, match=r"\w+"):
            read(pickled)
    assert not mark.exists()


@pytest.mark.parametrize("kind", touching(Path("mark")))
def test_pickle_itself_would_call_it(tmp_path: Path, kind: str) -> None:
    """Else the test above shows nothing."""
    if kind == "import":
        assert pickle.loads(pickle.dumps(touching(tmp_path)["import"])) is os
        return
    mark = tmp_path / "mark"
    made = pickle.loads(pickle.dumps(touching(mark)[kind]))
    if kind == "Popen":
        made.wait()
    assert mark.exists()


@pytest.mark.parametrize(
    "program",
    [
        b"cos\nsystem\n(S'touch MARK'\ntR.",
        b"(S'touch MARK'\nios\nsystem\n.",
        b"(cos\nsystem\nS'touch MARK'\no.",
        b"\x80\x02cos\nsystem\nX\x0a\x00\x00\x00touch MARK\x85\x81.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0atouch MARK\x85R.",
        # The state of an object, of a class, and of what is not a stand-in.
        b"\x80\x02cbuiltins\nobject\n)\x81}X\x0a\x00\x00\x00__reduce__cos\nsystem\nsb.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x0b\x00\x00\x00__setstate_cos\nsystem\nsb.",
        b"\x80\x02]}X\x06\x00\x00\x00appendcos\nsystem\nsb.",
        b"\x80\x02\x82\x01.",  # a class by its number
        b"\x80\x02Nr\xff\xff\xff\xff.",  # a place of the memo that would take 64 GB
    ],
)
def test_programs_made_by_hand_do_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: bytes) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    with contextlib.suppress(UnsafeCallError, TypeError, AttributeError, pickle.UnpicklingError):
        assert isinstance(read(program), StandIn)
    assert not list(tmp_path.iterdir()) and set(sys.modules) == before


def test_no_module_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "harmful_when_imported.py").write_text("from pathlib import Path\nPath('mark').touch()\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    found = read(b"charmful_when_imported\nConfig\n)\x81.")
    assert found.name == "harmful_when_imported.Config"
    assert not (tmp_path / "mark").exists() and "harmful_when_imported" not in sys.modules


class Outer:
    class Inner:
        def __init__(self) -> None:
            self.depth = 3


class Settings(dict[str, Any]):
    """A dictionary with attributes."""


@pytest.mark.parametrize("protocol", range(2, 6))
def test_values_come_back_and_other_objects_do_not_matter(protocol: int) -> None:
    settings = Settings(rate=0.1)
    settings.frozen = True  # type: ignore[attr-defined]
    values = {"epoch": 29, "rate": 1e-3, "names": ["a", None, True], "pair": (1, "x"), 3: 10**30}
    others = {
        "ordered": OrderedDict(first=1, second=2),
        "default": defaultdict(list, {"a": [1]}),
        "settings": settings,
        "inner": Outer.Inner(),
        "counter": Counter("abc"),
        "path": PurePosixPath("/tmp/x"),
        "set": {1, 2},
        "frozen": frozenset((3,)),
        "when": datetime(2022, 2, 22),
        "class": dict,
        "function": torch.nn.functional.gelu,
    }
    found = read(pickle.dumps(values | others, protocol))
    assert {key: found[key] for key in values} == values
    for name, first in (("ordered", ("first", 1)), ("default", ("a", [1])), ("settings", ("rate", 0.1))):
        assert next(iter(found[name].entries.items())) == first
    assert found["inner"].name.endswith("Outer.Inner") and found["inner"].state == {"depth": 3}


def test_a_file_of_weights_with_harm_beside_them(tmp_path: Path) -> None:
    """In both formats that torch.save writes."""
    mark = tmp_path / "mark"
    for kind, harmful in touching(mark).items():
        for options in ({}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 4}):
            path = tmp_path / "weights.pth"
            torch.save({"config": harmful, "model": {"a": torch.arange(3.0)}}, path, **options)  # type: ignore[arg-type]
            if kind in INERT:
                assert read_weights(path).tensors["a"].tolist() == [0, 1, 2]
            else:
                with pytest.raises(ValueError, match=r"weights\.pth would call \S+ if it were unpickled"):
                    read_weights(path)
            assert not mark.exists()
