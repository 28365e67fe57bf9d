"""Which samples of the corpus are boiler-plate or duplicates of earlier ones: pure functions of parts of the index that
a shuffle brought together, so that no process holds all of it.

`MARKS_SCHEMA` is what goes through the shuffles: rows of the index, and marks that say why the sample of that `order`
is dropped.
"""

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.curation.pieces import INDEX_SCHEMA

KEEP, BOILERPLATE, DUPLICATE, NEAR_DUPLICATE = range(4)
REASONS = ("", "caption_boilerplate", "duplicate", "near_duplicate")
"""Drop reasons; where several hold for a sample, the first counts."""

MARKS_SCHEMA = INDEX_SCHEMA.append(pa.field("file", pa.int32(), nullable=False)).append(
    pa.field("mark", pa.int8(), nullable=False)
)
"""`file`: number of the file of the data set."""

KEYS_SCHEMA = pa.schema(
    [
        pa.field("partition", pa.int32(), nullable=False),
        pa.field("kind", pa.int8(), nullable=False),  # 0 content, 1 original file, 2... bands of the perceptual hash
        pa.field("key", pa.uint64(), nullable=False),
        pa.field("order", pa.int64(), nullable=False),
        pa.field("perceptual", pa.uint64(), nullable=False),
        pa.field("file", pa.int32(), nullable=False),
    ]
)
"""Samples that agree in kind and key may be duplicates, and are in the same partition."""
_FIRST_BAND = 2
_HASH_BITS = 64
_CHUNK = 2048  # hashes compared with as many at a time: 32 MB

UInt64 = npt.NDArray[np.uint64]


def file_of(shuffle_key: UInt64, num_files: int) -> npt.NDArray[np.int32]:
    """The range of keys, of `num_files` equal ones, that each key is in."""
    return ((shuffle_key >> np.uint64(32)) * np.uint64(num_files) >> np.uint64(32)).astype(np.int32)


def mark_boilerplate(rows: pa.Table, max_images: int | None) -> pa.Table:
    """Mark the rows whose caption more than `max_images` different images bear. All rows of a caption must be in
    `rows`."""
    if max_images is None or not rows.num_rows:
        return rows
    caption, content = _numbers(rows, "caption"), _numbers(rows, "content")
    pairs = np.unique(np.stack([caption, content]), axis=1)
    captions, num_images = np.unique(pairs[0], return_counts=True)
    common = np.isin(caption, captions[num_images > max_images])
    mark = np.where(common, BOILERPLATE, KEEP).astype(np.int8)
    return rows.set_column(rows.schema.get_field_index("mark"), MARKS_SCHEMA.field("mark"), pa.array(mark))


def duplicate_keys(rows: pa.Table, distance: int | None, num_partitions: int) -> pa.Table:
    """[KEYS_SCHEMA] what each row that is not marked is compared by.

    The hash is cut into `distance` + 1 bands: two hashes that differ in no more bits agree in one band at least.
    """
    rows = rows.filter(pc.field("mark") == KEEP)
    order, file = _numbers(rows, "order"), _numbers(rows, "file")
    hashes = rows.column("perceptual").fill_null(0).to_numpy().astype(np.uint64)
    textured = rows.column("perceptual").is_valid().to_numpy()
    parts = [(0, _numbers(rows, "content"), None), (1, _numbers(rows, "original"), None)]
    if distance is not None:
        bounds = [round(_HASH_BITS * band / (distance + 1)) for band in range(distance + 2)]
        for band, (low, high) in enumerate(itertools.pairwise(bounds)):
            bits = np.uint64(2 ** (high - low) - 1) if high - low < _HASH_BITS else np.uint64(2**64 - 1)
            parts.append((_FIRST_BAND + band, hashes >> np.uint64(low) & bits, textured))
    tables = [KEYS_SCHEMA.empty_table()]
    for kind, key, chosen in parts:
        mask = np.ones(len(order), dtype=bool) if chosen is None else chosen
        columns = {
            "partition": partition_of(key[mask], kind, num_partitions),
            "kind": np.full(mask.sum(), kind, dtype=np.int8),
            "key": key[mask],
            "order": order[mask],
            "perceptual": hashes[mask],
            "file": file[mask],
        }
        tables.append(pa.table(columns, schema=KEYS_SCHEMA))
    return pa.concat_tables(tables)


def find_duplicates(keys: pa.Table, distance: int | None) -> pa.Table:
    """[MARKS_SCHEMA] a mark for each row of a partition that an earlier row is a duplicate of; a row may get several.

    An earlier row counts also where it is dropped itself: of pictures that go over into one another by small steps, the
    first is kept. So every row can be judged apart from what becomes of the others.
    """
    if not keys.num_rows:
        return MARKS_SCHEMA.empty_table()
    kind, key, order = _numbers(keys, "kind"), _numbers(keys, "key"), _numbers(keys, "order")
    by_key = np.lexsort((order, key, kind))
    kind, key, order = kind[by_key], key[by_key], order[by_key]
    hashes, file = _numbers(keys, "perceptual")[by_key], _numbers(keys, "file")[by_key]
    starts = np.flatnonzero(np.r_[True, (kind[1:] != kind[:-1]) | (key[1:] != key[:-1])])
    ends = np.r_[starts[1:], len(key)]
    mark = np.zeros(len(key), dtype=np.int8)
    several = ends - starts > 1
    for start, end in zip(starts[several].tolist(), ends[several].tolist(), strict=True):
        if kind[start] < _FIRST_BAND:
            mark[start + 1 : end] = DUPLICATE
        elif distance is not None:
            mark[start:end][_has_earlier_within(hashes[start:end], distance)] = NEAR_DUPLICATE
    found = mark > KEEP
    num_found = int(found.sum())
    columns: dict[str, Any] = {
        field.name: np.zeros(num_found, dtype=field.type.to_pandas_dtype()) for field in MARKS_SCHEMA
    }
    return pa.table(columns | {"order": order[found], "file": file[found], "mark": mark[found]}, schema=MARKS_SCHEMA)


def decide(rows_and_marks: pa.Table) -> pa.Table:
    """The rows of a file of the data set, each with one mark: its own or, of those found for it, the first reason."""
    mark, order = _numbers(rows_and_marks, "mark"), _numbers(rows_and_marks, "order")
    found = mark >= DUPLICATE
    rows = rows_and_marks.filter(pa.array(~found))
    place = np.argsort(order[~found], kind="stable")
    worst = mark[~found].copy()
    at = place[np.searchsorted(order[~found], order[found], sorter=place)]
    unmarked = np.full(len(worst), len(REASONS), dtype=np.int8)
    np.minimum.at(unmarked, at, mark[found])
    worst = np.where((worst == KEEP) & (unmarked < len(REASONS)), unmarked, worst)
    return rows.set_column(rows.schema.get_field_index("mark"), MARKS_SCHEMA.field("mark"), pa.array(worst))


def _has_earlier_within(hashes: UInt64, distance: int) -> npt.NDArray[np.bool_]:
    """For each hash, whether one before it differs in at most `distance` bits."""
    firsts = np.sort(np.unique(hashes, return_index=True)[1])
    distinct = hashes[firsts]
    near = np.zeros(len(distinct), dtype=bool)
    for start in range(0, len(distinct), _CHUNK):
        some = distinct[start : start + _CHUNK]
        for other in range(0, start + 1, _CHUNK):
            close = np.bitwise_count(some[:, None] ^ distinct[None, other : other + _CHUNK]) <= distance
            if other == start:
                close = np.tril(close, k=-1)
            near[start : start + _CHUNK] |= close.any(axis=1)
    has = np.ones(len(hashes), dtype=bool)  # one that is repeated has an equal one before it
    has[firsts] = near
    return has


def partition_of(key: UInt64, kind: int, num_partitions: int) -> npt.NDArray[np.int32]:
    # Bands are small numbers: multiplied by 2^64 over the golden ratio, their high bits are spread evenly (Knuth).
    mixed = (key + np.uint64(kind)) * np.uint64(0x9E3779B97F4A7C15)
    return ((mixed >> np.uint64(32)) * np.uint64(num_partitions) >> np.uint64(32)).astype(np.int32)


def _numbers(table: pa.Table, name: str) -> npt.NDArray[Any]:
    return table.column(name).to_numpy()
