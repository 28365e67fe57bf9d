"""Reads JSON files that anyone may have written: bounded in size and depth, with the types that the code relies on.

What a file holds is described by a TypedDict or a frozen dataclass. `documents.KEEP_OTHERS` lets a TypedDict have more
keys, e.g. those of a later version. No value that was not described is relied on.
"""

import functools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from pipelines import storage

MAX_BYTES = 2**26
"""Largest file that is parsed, 67 MB. Python's objects take about ten times as much memory."""
KEEP_OTHERS = ConfigDict(extra="allow")

Count = Annotated[int, Field(ge=0, le=2**53)]
"""A number of things, or a step."""
Finite = Annotated[float, Field(allow_inf_nan=False)]

_MAX_SHOWN = 200  # characters of a reason


def read(uri: str, kind: Any, fix: str, limit: int = MAX_BYTES) -> Any:
    """Returns the content of a JSON file, of the type `kind`.

    Args:
        kind: A TypedDict (the result is a dict), a dataclass (an instance), or a type like `list[int]`.
        fix: What to do about an invalid file; the end of the message.
        limit: Largest number of bytes.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is not JSON, or has other types or too many bytes. One line.
    """
    return parse(storage.read_bytes(uri, limit), kind, uri, fix)


def parse(content: bytes | str, kind: Any, source: str, fix: str) -> Any:
    """Returns JSON that was read from `source`; see `read`."""
    try:
        return _adapter(kind).validate_json(content, strict=True)
    except ValidationError as error:
        raise ValueError(f"{source} is corrupted ({_reason(error)}): {fix}") from None


def check(value: Any, kind: Any, source: str, fix: str) -> Any:
    """Returns a value of JSON's types that was read from `source`; see `read`."""
    try:
        return _adapter(kind).validate_python(value, strict=True)
    except ValidationError as error:
        raise ValueError(f"{source} is corrupted ({_reason(error)}): {fix}") from None


def in_folder(name: str, source: str, fix: str) -> str:
    """Returns a path that a file names, relative to the file's folder. ValueError if it could lead out of the folder:
    absolute, a URI, `..`, a backslash, a control character."""
    parts = name.split("/")
    if "" in parts or "." in parts or ".." in parts or re.search(r"[\\\x00-\x1f:]", name):
        raise ValueError(f"{source} names {name[:_MAX_SHOWN]!r}, which is not a path in its folder: {fix}")
    return name


def refuse_links_out(folder: str, names: Iterable[str]) -> None:
    """Raises ValueError for the first name in a folder on this machine that is a symbolic link out of the folder."""
    if "://" in folder:
        return
    root = Path(folder).resolve()
    for name in names:
        if not (target := (root / name).resolve()).is_relative_to(root):
            raise ValueError(f"{folder}/{name} is a link to {target}, out of its folder: put the file itself there")


@functools.lru_cache(maxsize=64)
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _reason(error: ValidationError) -> str:
    """Returns the first problem in one line: where, and what is expected."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"])[:_MAX_SHOWN]
    message = first["msg"].removeprefix("Value error, ")[:_MAX_SHOWN]
    line = f"{where!a}: {message}" if where else message
    return " ".join(line.split())
