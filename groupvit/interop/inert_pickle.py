"""Reads pickles without running their code: every class and function is replaced by a stand-in that does nothing.

A pickle is a program that makes objects by calling the classes and functions it names. Here all names are stand-ins, so
nothing is imported and no code from the file is called. Numbers, texts, lists, dictionaries and the positions of
tensors in the file are kept.
"""

import pickle
import pickletools
import sys
from collections.abc import Callable
from typing import Any, BinaryIO, ClassVar

_OF_THE_MACHINE = frozenset(
    ("os", "posix", "nt", "sys", "subprocess", "commands", "shutil", "importlib", "runpy", "socket", "ctypes", "pickle")
)
"""Modules with system access, which no checkpoint needs; nothing in them may be called."""
_PARTLY_OF_THE_MACHINE = frozenset(("builtins", "io", "torch"))
"""Packages of which classes may be used, but no functions may be called."""


class UnsafeCallError(ValueError):
    """A pickle calls a function with system access. The message is the function's name."""


class StandIn:
    """Replaces an object of any class. It stores the entries and the state it is given, and does nothing else."""

    name: ClassVar[str] = "unknown"
    """Module and name of the class, as in the pickle."""

    def __new__(cls, *arguments: Any, **options: Any) -> Any:
        made = object.__new__(cls)
        made.entries = dict(arguments[0]) if arguments and isinstance(arguments[0], dict) else {}
        made.state = None
        return made

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.entries: dict[Any, Any]
        """Entries, if it is a dictionary of any class."""
        self.state: Any
        """Its attributes, if it has any."""

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries[key] = value

    def __call__(self, *arguments: Any, **options: Any) -> "StandIn":
        return self

    def append(self, item: Any) -> None:
        pass

    def extend(self, items: Any) -> None:
        pass

    add = append


class StoredTensor(StandIn):
    """A tensor that has not been read yet."""

    name = "tensor"
    place: tuple[Any, ...]
    """Storage, offset, size, stride: not validated, and some may be missing."""

    def __new__(cls, *arguments: Any, **options: Any) -> Any:
        made = super().__new__(cls)
        made.place = arguments[:4]
        return made


class _Parameter(StandIn):
    """Returns the tensor of the parameter."""

    def __new__(cls, *arguments: Any, **options: Any) -> Any:
        return arguments[0]


class _TensorWithAttributes(StandIn):
    """Returns the tensor, made by the stand-in of its rebuild function."""

    def __new__(cls, *arguments: Any, **options: Any) -> Any:
        make, _, values = arguments[:3]
        return make(*values) if isinstance(make, type) and issubclass(make, StoredTensor) else StandIn()


class _Getattr(StandIn):
    """getattr: old protocols use it for nested classes, attackers for methods. Only nested classes are supported."""

    def __new__(cls, *arguments: Any, **options: Any) -> Any:
        owner, name = arguments[:2]
        if not isinstance(owner, type) or not issubclass(owner, StandIn):
            raise UnsafeCallError("getattr")
        return _named(f"{owner.name}.{name}", owner)


class _Refused(StandIn):
    """May be named but not called."""

    def __new__(cls, *arguments: Any, **options: Any) -> Any:
        raise UnsafeCallError(cls.name)


_REBUILT: dict[str, type[StandIn]] = {
    "torch._utils._rebuild_tensor": StoredTensor,
    "torch._utils._rebuild_tensor_v2": StoredTensor,
    "torch._utils._rebuild_parameter": _Parameter,
    "torch._utils._rebuild_parameter_with_state": _Parameter,
    "torch._tensor._rebuild_from_type_v2": _TensorWithAttributes,
    "builtins.getattr": _Getattr,
}


def load(file: BinaryIO, storage: Callable[[Any], Any]) -> Any:
    """Read the next pickle of a file, with stand-ins for all objects except plain values. The file is left at its end.

    `storage` converts a persistent id of the pickle to a stand-in for the storage of a tensor. A corrupted file can
    raise any exception. A file that calls a function with system access raises UnsafeCallError.
    """
    start = file.tell()
    for operation, argument, place in pickletools.genops(file):
        if operation.name.startswith("EXT"):
            raise pickle.UnpicklingError("it names classes by numbers")
        if operation.name.endswith("PUT") and isinstance(argument, int) and argument > (place or 0):
            raise pickle.UnpicklingError("it asks for more memory than it can use")
    file.seek(start)
    return _Unpickler(file, storage).load()


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, storage: Callable[[Any], Any]) -> None:
        super().__init__(file, encoding="latin1")  # strings of Python 2 are bytes
        self._storage = storage

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        module_name = "builtins" if module_name == "__builtin__" else module_name  # its name in Python 2
        full = f"{module_name}.{global_name}"
        if full in _REBUILT:
            return _REBUILT[full]
        return _named(full, _Refused if _acts_on_the_machine(module_name, global_name) else StandIn)

    def persistent_load(self, pid: Any, /) -> Any:
        return self._storage(pid)


def _named(name: str, kind: type[StandIn]) -> type[StandIn]:
    return type("StandIn", (kind,), {"name": name})


def _acts_on_the_machine(module: str, name: str) -> bool:
    package = module.partition(".")[0].removeprefix("_")
    if package in _OF_THE_MACHINE:
        return True
    if package not in _PARTLY_OF_THE_MACHINE or name.startswith("_"):
        return package == "builtins" and name == "__import__"
    found = vars(sys.modules[module]).get(name) if module in sys.modules else None
    return callable(found) and not isinstance(found, type)
