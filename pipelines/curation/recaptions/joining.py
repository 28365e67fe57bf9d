"""Joins recaptions with the samples of the same key. Pure functions of a part of the index that a shuffle has brought
together."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.curation.duplicates import KEEP, MARKS_SCHEMA, OVER_LIMIT, REPEATED

JOIN_SCHEMA = pa.schema([*MARKS_SCHEMA, pa.field("join", pa.uint64(), nullable=False)])
"""Rows to join: samples, with origin 0, and recaptions, whose columns of samples are zeros."""

_OF_SAMPLE = ("order", "source", "shuffle_key", "content", "original", "file", "keeper")
_OF_CAPTION = ("origin", "caption", "piece", "run", "offset", "bytes")


def join_recaptions(rows: pa.Table, max_captions: int) -> pa.Table:
    """[MARKS_SCHEMA] Returns a row for each sample and each recaption with its key, and marks for further captions.

    `rows` [JOIN_SCHEMA] must contain all rows of a key. The rows of several recaptions with the same key and origin are
    taken together, in the order of the files: the first `max_captions` different captions, numbered from 0.
    """
    origin = _numbers(rows, "origin")
    samples, captions = rows.filter(pa.array(origin == 0)), rows.filter(pa.array(origin > 0))
    if not samples.num_rows or not captions.num_rows:
        return MARKS_SCHEMA.empty_table()
    captions = captions.take(pa.array(np.lexsort([_numbers(captions, name) for name in ("order", "origin", "join")])))
    chosen, mark, number = _ranked(captions, max_captions)
    captions = captions.take(pa.array(chosen))
    samples = samples.take(pa.array(np.lexsort([_numbers(samples, name) for name in ("order", "join")])))
    starts = np.searchsorted(_numbers(captions, "join"), _numbers(samples, "join"))
    counts = np.searchsorted(_numbers(captions, "join"), _numbers(samples, "join"), side="right") - starts
    of_sample = np.repeat(np.arange(samples.num_rows), counts)
    of_caption = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(starts, counts)
    columns = {field.name: np.zeros(len(of_sample), field.type.to_pandas_dtype()) for field in MARKS_SCHEMA}
    columns |= {name: _numbers(samples, name)[of_sample] for name in _OF_SAMPLE}
    columns |= {name: _numbers(captions, name)[of_caption] for name in _OF_CAPTION}
    columns |= {"mark": mark[of_caption], "number": number[of_caption]}
    return pa.table(columns, schema=MARKS_SCHEMA)


def follow_duplicates(rows: pa.Table, duplicates: pa.Table) -> pa.Table:
    """[MARKS_SCHEMA] Gives the recaptions of samples that are duplicates to the samples that are kept instead.

    Args:
        rows: Recaptions of samples.
        duplicates: Marks DUPLICATE, ascending by `order`, without the columns that are zeros.
    """
    if not duplicates.num_rows or not rows.num_rows:
        return rows
    known, order = _numbers(duplicates, "order"), _numbers(rows, "order")
    at = np.searchsorted(known, order).clip(max=len(known) - 1)
    moved = known[at] == order
    for name, given in (("keeper", "keeper"), ("file", "number")):
        values = np.where(moved, _numbers(duplicates, given)[at], _numbers(rows, name))
        field = MARKS_SCHEMA.field(name)
        rows = rows.set_column(MARKS_SCHEMA.get_field_index(name), field, pa.array(values, field.type))
    return rows


def _ranked(
    captions: pa.Table, max_captions: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int8], npt.NDArray[np.int32]]:
    """Chooses among captions that are sorted by key, origin and order. Returns the rows of those to join, with one for
    all repeated and one for all further captions of a key and origin; the mark of each; its number, or how many it
    stands for.
    """
    key = np.stack([_numbers(captions, "join"), _numbers(captions, "origin").astype(np.uint64)])
    text = _numbers(captions, "caption")
    starts = np.r_[True, (key[:, 1:] != key[:, :-1]).any(axis=0)]
    group = np.cumsum(starts) - 1
    by_text = np.lexsort((text, group))  # stable: the first of equal ones comes first
    repeated = np.zeros(len(text), bool)
    same = (np.diff(group[by_text]) == 0) & (np.diff(text[by_text]) == 0)
    repeated[by_text[1:][same]] = True
    before = np.cumsum(~repeated) - ~repeated
    number = before - before[np.flatnonzero(starts)][group]
    mark = np.where(repeated, REPEATED, np.where(number >= max_captions, OVER_LIMIT, KEEP))
    others = np.flatnonzero(mark != KEEP)
    _, firsts, counts = np.unique(np.stack([group, mark])[:, others], axis=1, return_index=True, return_counts=True)
    number[others[firsts]] = counts
    chosen = np.sort(np.r_[np.flatnonzero(mark == KEEP), others[firsts]])
    return chosen, mark[chosen].astype(np.int8), number[chosen].astype(np.int32)


def _numbers(table: pa.Table, name: str) -> npt.NDArray[Any]:
    return table.column(name).to_numpy()
