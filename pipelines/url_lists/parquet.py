"""Reads URL lists in Parquet."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.url_lists.columns import select_columns
from pipelines.url_lists.content import START, check_magic
from pipelines.url_lists.presets import Columns
from pipelines.url_lists.rejected import Reject
from pipelines.url_lists.rows import UnfitValueError, label_of, number_of, text_of, type_of

_ROWS_PER_TABLE = 1 << 16


def read_parquet(uri: str, file: pa.NativeFile, columns: Columns, reject: Reject) -> Iterator[pa.Table]:
    """Yields tables as described in `pipelines.url_lists.rows`. Raises ValueError if a column has an unusable type."""
    start = file.read_at(min(START, file.size()), 0)
    if not start.startswith(b"PAR1"):
        check_magic(uri, start)
    first = 1
    with pq.ParquetFile(file) as opened:
        schema = opened.schema_arrow
        selected = select_columns(uri, schema.names, columns)
        for ours, index in selected.items():
            _check_type(uri, ours, schema.field(index))
        names = list(dict.fromkeys(schema.names[index] for index in selected.values()))
        for batch in opened.iter_batches(_ROWS_PER_TABLE, columns=names):
            arrays: dict[str, pa.Array] = {}
            good = np.ones(batch.num_rows, bool)
            for ours, index in selected.items():
                place = batch.schema.get_all_field_indices(schema.names[index])[0]
                arrays[ours] = _converted(ours, batch.column(place), first, good, reject)
            arrays["number"] = pa.array(np.arange(first, first + batch.num_rows))
            table = pa.table(arrays)
            yield table if good.all() else table.filter(pa.array(good))
            first += batch.num_rows


def _check_type(uri: str, ours: str, field: pa.Field) -> None:
    kind = field.type
    if ours == "caption" and (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        kind = kind.value_type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    is_text |= pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    if ours == "url" and not (is_text or pa.types.is_null(kind)):
        raise ValueError(
            f"{uri}: column {field.name} holds {field.type}, not URLs as text; write one URL per row, or name another "
            "column with --url-column"
        )
    if ours in ("caption", "caption_second") and pa.types.is_nested(kind):
        raise ValueError(
            f"{uri}: column {field.name} holds {field.type}, not captions; write texts or lists of texts, or name "
            "another column with --caption-column"
        )


def _converted(ours: str, column: pa.Array, first: int, good: npt.NDArray[np.bool_], reject: Reject) -> pa.Array:
    """Converts a column to the type that readers return. Rejects invalid rows and marks them as not `good`."""
    in_lists = ours == "caption" and (pa.types.is_list(column.type) or pa.types.is_large_list(column.type))
    wanted = pa.list_(pa.string()) if in_lists else type_of(ours)
    # Numbers are not texts, though Arrow would convert them.
    if not (_is_number(column.type.value_type if in_lists else column.type) and type_of(ours) == pa.string()):
        try:
            return _checked(column.cast(wanted))
        except pa.ArrowException:
            pass
    return pa.array(_values(ours, column, first, good, reject), wanted)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_primitive(kind)  # also True for dates and booleans


def _checked(column: pa.Array) -> pa.Array:
    """Raises ArrowInvalid if a text is not UTF-8, which Parquet itself does not guarantee."""
    column.validate(full=True)
    return column


def _values(ours: str, column: pa.Array, first: int, good: npt.NDArray[np.bool_], reject: Reject) -> list[Any]:
    if pa.types.is_string(column.type):
        column = column.view(pa.binary())  # invalid UTF-8 cannot become a str
    elif pa.types.is_large_string(column.type):
        column = column.view(pa.large_binary())
    values: list[Any] = []
    for index, value in enumerate(column.to_pylist()):
        try:
            values.append(_value(ours, value))
        except UnfitValueError as error:
            if good[index]:
                reject(first + index, error.reason, str(error))
            good[index] = False
            values.append(None)
    return values


def _value(ours: str, value: Any) -> Any:
    if type_of(ours) != pa.string():
        return number_of(value)
    if ours not in ("url", "caption", "caption_second"):
        return label_of(value)
    try:
        return [text_of(part) for part in value] if isinstance(value, list) else text_of(value)
    except TypeError:
        return None  # a date is not a caption
