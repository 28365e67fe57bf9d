"""The rows of a URL list: the columns that readers return, and the schema that the download uses.

Readers return tables with some of these columns: `url` (string), `caption` (string or list<string>), `caption_second`
(string), those of `pipelines.url_lists.columns.OPTIONAL`, and `number`: the row's position in its file, from 1.
"""

import math
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.url_lists.columns import OPTIONAL
from pipelines.url_lists.presets import Columns
from pipelines.url_lists.rejected import Reject

LIST_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64()),  # position in the list, without invalid rows
        pa.field("url", pa.string()),  # without credentials
        pa.field("caption", pa.string()),  # the first of the captions
        pa.field("captions", pa.list_(pa.string())),  # without blank ones and repetitions
        *(pa.field(name, kind) for name, kind in OPTIONAL.items()),
    ]
)


MOST_CAPTIONS = 1000
"""Largest number of captions kept for a URL. A placeholder image may have millions, which add nothing."""


class UnfitValueError(ValueError):
    """A value that makes its row invalid. `reason` is one of those in `pipelines.url_lists.rejected`."""

    def __init__(self, reason: str, found: str) -> None:
        super().__init__(found)
        self.reason = reason


def type_of(ours: str) -> pa.DataType:
    return OPTIONAL.get(ours, pa.string())


def table_of_texts(rows: Sequence[Sequence[str]], numbers: Sequence[int], selected: Mapping[str, int]) -> pa.Table:
    """Makes a table from rows of fields, each as long as the header."""
    arrays: dict[str, pa.Array] = {"number": pa.array(numbers, pa.int64())}
    for ours, index in selected.items():
        texts = [row[index] for row in rows]
        if type_of(ours) == pa.string():
            arrays[ours] = pa.array(texts, pa.string())
        else:
            arrays[ours] = pa.array([number_of(text) for text in texts], pa.float64())
    return pa.table(arrays)


def number_of(value: Any) -> float | None:
    """Returns a score, or None if `value` is not a number."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return None if math.isnan(number) else number


def text_of(value: Any) -> str | None:
    """Returns a text, or None for a missing value: null, NaN and other numbers, True and False.

    Raises UnfitValueError if the text cannot be encoded, and TypeError if `value` is not a single value.
    """
    if isinstance(value, str):
        if not value.isascii():
            _check_characters(value)
        return value
    if value is None or isinstance(value, (bool, int, float)):
        return None
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise UnfitValueError("invalid_utf8", f"byte 0x{value[error.start]:02x} in {value[:40]!r}") from None
    raise TypeError


def label_of(value: Any) -> str | None:
    """Returns an optional text, e.g. a license, or None if `value` cannot be used. A number becomes text."""
    if isinstance(value, (bool, int, float)):
        return None if math.isnan(value) else str(value)
    try:
        return text_of(value)
    except (TypeError, UnfitValueError):
        return None


def _check_characters(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UnfitValueError("lone_surrogate", f"\\u{ord(text[error.start]):04x} in {text[:80]!r}") from None


def finished(table: pa.Table, columns: Columns, row: int, reject: Reject) -> pa.Table:
    """Converts a reader's table to LIST_SCHEMA, with rows counted from `row`. Rejects rows without a URL."""
    url = pc.call_function("utf8_trim_whitespace", [pc.fill_null(_whole(table, "url"), "")])
    missing = pc.call_function("equal", [url, pa.scalar("")]).to_numpy(zero_copy_only=False)
    if missing.any():
        for number in table.column("number").to_numpy()[missing].tolist():
            reject(number, "url_missing", "no URL")
        table, url = table.filter(pa.array(~missing)), url.filter(pa.array(~missing))
    # The record of the download keeps URLs forever, and what stands before an @ is a password.
    without = pc.ReplaceSubstringOptions(r"^([A-Za-z][A-Za-z0-9+.-]*://)[^/?#]*@", r"\1")
    url = pc.call_function("replace_substring_regex", [url], without)
    parents, texts = _captions(table, columns)
    captions, first = lists_of(parents, texts, table.num_rows)
    arrays: dict[str, pa.Array] = {
        "row": pa.array(np.arange(row, row + table.num_rows)),
        "url": url,
        "caption": first,
        "captions": captions,
    }
    for name, kind in OPTIONAL.items():
        present = name in table.column_names
        arrays[name] = _whole(table, name) if present else pa.nulls(table.num_rows, kind)
    return pa.table(arrays, schema=LIST_SCHEMA)


def lists_of(parents: npt.NDArray[np.int64], texts: pa.Array, num_rows: int) -> tuple[pa.Array, pa.Array]:
    """Collects the texts of each row, without nulls, blanks and repetitions, up to MOST_CAPTIONS.

    Args:
        parents: The row of each text. The texts of a row need not be adjacent.
        texts: All texts.
        num_rows: Number of rows.

    Returns:
        The list of texts of each row, and the first of them (null if there is none).
    """
    trimmed = pc.call_function("utf8_trim_whitespace", [texts])
    written = pc.fill_null(pc.call_function("not_equal", [trimmed, pa.scalar("")]), False).to_numpy(
        zero_copy_only=False
    )
    kept = np.flatnonzero(written)
    if (np.diff(parents) <= 0).any():
        codes = texts.dictionary_encode().indices.fill_null(-1).to_numpy().astype(np.int64)
        pairs = parents[kept] * (int(codes.max(initial=0)) + 1) + codes[kept]
        kept = kept[np.sort(np.unique(pairs, return_index=True)[1])]
        kept = kept[np.argsort(parents[kept], kind="stable")]
        starts = np.searchsorted(parents[kept], parents[kept])
        kept = kept[np.arange(len(kept)) - starts < MOST_CAPTIONS]
    counts = np.bincount(parents[kept], minlength=num_rows)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    values = texts.take(pa.array(kept))
    first = values.take(pa.array(offsets[:-1], mask=counts == 0))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values), first


def _captions(table: pa.Table, columns: Columns) -> tuple[npt.NDArray[np.int64], pa.Array]:
    """Returns the row of each caption, and its text."""
    column = _whole(table, "caption")
    if pa.types.is_list(column.type):
        return column.value_parent_indices().to_numpy().astype(np.int64), column.flatten()
    parts = [column, *([_whole(table, "caption_second")] if "caption_second" in table.column_names else [])]
    if columns.percent_encoded or len(parts) > 1:
        decode = urllib.parse.unquote_plus if columns.percent_encoded else str
        rows = zip(*(part.to_pylist() for part in parts), strict=True)
        column = pa.array([" ".join(decode(text) for text in row if text) or None for row in rows], pa.string())
    return np.arange(table.num_rows), column


def _whole(table: pa.Table, name: str) -> Any:
    """Returns a column as one array."""
    return pa.concat_arrays([*table.column(name).chunks, pa.array([], table.schema.field(name).type)])
