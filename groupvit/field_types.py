"""Checks that a value read from JSON has the type of the field it is for. Python itself would accept any."""

import dataclasses
import math
import types
from typing import Any, Literal, Union, get_args, get_origin


def check_type(hint: Any, value: Any, name: str) -> None:
    """Raise TypeError unless `value` has the type of a config's field.

    Args:
        hint: Type of the field: a plain type, a dataclass, or a tuple, Literal or union of them.
        value: A dict for a dataclass, a list for a tuple. What the dict holds is not checked. Numbers must be finite.
        name: Name of the field, for the message.
    """
    if not _fits(hint, value):
        raise TypeError(f"{name}={str(value)[:100]!r} is not {getattr(hint, '__name__', str(hint))}")


def _fits(hint: Any, value: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        return isinstance(value, dict)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            return False
        hints = inner[:1] * len(value) if inner[1:] == (...,) else inner
        return len(hints) == len(value) and all(map(_fits, hints, value))
    if origin in (Union, types.UnionType):
        return any(_fits(option, value) for option in inner)
    if origin is Literal:
        return any(type(value) is type(option) and value == option for option in inner)
    if type(value) is int:
        return hint in (int, float) and abs(value) < 2**63
    return type(value) is hint and (hint is not float or math.isfinite(value))
