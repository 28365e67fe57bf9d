"""Converts columns of raw shards, of any Arrow type, to Python values: texts and captions."""

from collections.abc import Mapping
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc

CAPTION_COLUMNS = ("captions", "caption")
"""A shard has one of them or both: `captions`, a list of texts, precedes `caption`, a text or a list of texts."""


def wrong_with_columns(schema: pa.Schema, names: frozenset[str]) -> str | None:
    """Describes the first column among `names` (in lower case) with an unreadable type; None if all are readable."""
    wrong = (wrong_with_column(field, field.name.lower()) for field in schema if field.name.lower() in names)
    return next(filter(None, wrong), None)


def wrong_with_column(field: pa.Field, ours: str) -> str | None:
    """Describes a column with an unreadable type for what it is to hold: `jpg`, one of CAPTION_COLUMNS, or any other
    name for one value a row.
    """
    kind = _plain(field.type)
    if ours == "jpg" and not (is_bytes(kind) or pa.types.is_null(kind)):
        return f"column {field.name} is {kind}; it must hold the bytes of image files (binary)"
    if ours in CAPTION_COLUMNS and _is_list(kind):
        kind = _plain(kind.value_type)
    if pa.types.is_nested(kind):
        right = "a text or a list of texts" if ours in CAPTION_COLUMNS else "one value a row"
        return f"column {field.name} is {field.type}; it must hold {right}: write one field of it as this column"
    return None


def texts(column: pa.Array) -> list[str | None]:
    """Returns values as texts. None for NaN and for invalid UTF-8, because a corrupted text counts as missing."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if _is_text(column.type):
        column = column.cast(pa.large_binary())  # Arrow would raise for the whole batch if one text is not UTF-8
    return [_text(value) for value in column.to_pylist()]


def captions(columns: Mapping[str, pa.Array]) -> list[list[str | None]]:
    """Returns the captions of each row: at least one, which may be None. `columns`: those of CAPTION_COLUMNS that
    exist.

    Numbers are not captions: tools write a column of numbers if all or most captions are missing (NaN).
    """
    found = [_lists(columns[name]) for name in CAPTION_COLUMNS if name in columns]
    return [next(filter(None, row), None) or [None] for row in zip(*found, strict=True)]


def _lists(column: pa.Array) -> list[list[str | None] | None]:
    if _is_list(column.type):
        values = iter(_captions(column.flatten()))
        lengths = pc.list_value_length(column).to_pylist()  # pyright: ignore[reportAttributeAccessIssue]
        return [None if length is None else list(islice(values, length)) for length in lengths]
    return [[value] for value in _captions(column)]


def _captions(column: pa.Array) -> list[str | None]:
    kind = _plain(column.type)
    return texts(column) if _is_text(kind) or is_bytes(kind) else [None] * len(column)


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def is_bytes(kind: pa.DataType) -> bool:
    """Whether values are bytes."""
    checks = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
    return any(check(kind) for check in checks)


def _is_list(kind: pa.DataType) -> bool:
    checks = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(check(kind) for check in checks)


def _text(value: object) -> str | None:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return None
    return None if value is None or value != value else str(value)  # NaN differs from itself
