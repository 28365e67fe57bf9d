"""Which captions of the corpus are boiler-plate, and which samples are duplicates: pure functions of parts of the index
that a shuffle brought together.

`MARKS_SCHEMA` is what goes through the shuffles: rows of the index, one for each caption, and marks. A mark says why
the sample of its `order` is dropped, or that a duplicate brings a caption to the sample `keeper` (BROUGHT), or that
duplicates of it have `number` captions of a source that it does not need (REPEATED, OVER_LIMIT).

Only `resolve` sees the whole corpus, but nothing of it except what may be a duplicate: some 100 bytes each. Whether a
picture is dropped depends on which of those before it were kept, so that has to be decided in one place.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.curation.near import UInt64, bands, has_near, near_a_kept_one
from pipelines.curation.pieces import INDEX_SCHEMA

KEEP, BOILERPLATE, DUPLICATE, NEAR_DUPLICATE, BROUGHT, REPEATED, OVER_LIMIT = range(7)
REASONS = ("", "caption_boilerplate", "duplicate", "near_duplicate")
"""Drop reasons of samples; where several hold for a sample, the first counts."""

MARKS_SCHEMA = pa.schema(
    [
        *INDEX_SCHEMA,
        pa.field("file", pa.int32(), nullable=False),  # number of the file of the data set
        pa.field("keeper", pa.int64(), nullable=False),  # `order` of the sample that a duplicate's caption goes to
        pa.field("mark", pa.int8(), nullable=False),
    ]
)

KEYS_SCHEMA = pa.schema(
    [
        pa.field("partition", pa.int32(), nullable=False),
        pa.field("kind", pa.int8(), nullable=False),  # 0 content, 1 original file, 2... bands of the perceptual hash
        pa.field("key", pa.uint64(), nullable=False),
        pa.field("order", pa.int64(), nullable=False),
        pa.field("perceptual", pa.uint64(), nullable=False),
        pa.field("file", pa.int32(), nullable=False),
        pa.field("place", pa.large_binary()),  # of the caption; null in bands
    ]
)
"""Samples that agree in kind and key may be duplicates, and are in the same partition."""

FOUND_SCHEMA = pa.schema(
    [
        pa.field("mark", pa.int8(), nullable=False),  # DUPLICATE, or NEAR_DUPLICATE: it may be one, or have one
        pa.field("order", pa.int64(), nullable=False),
        pa.field("file", pa.int32(), nullable=False),
        pa.field("keeper", pa.int64(), nullable=False),  # the first sample that a duplicate agrees with
        pa.field("keeper_file", pa.int32(), nullable=False),
        pa.field("perceptual", pa.uint64(), nullable=False),
        pa.field("place", pa.large_binary()),
    ]
)
"""What a partition tells `resolve`."""

_FIRST_BAND = 2
_PLACE = np.dtype(
    [
        (name, INDEX_SCHEMA.field(name).type.to_pandas_dtype())
        for name in ("number", "source", "caption", "piece", "run", "offset", "image_bytes", "bytes")
    ]
)
"""What a duplicate's caption is found by."""


def file_of(shuffle_key: UInt64, num_files: int) -> npt.NDArray[np.int32]:
    """The range of keys, of `num_files` equal ones, that each key is in."""
    return ((shuffle_key >> np.uint64(32)) * np.uint64(num_files) >> np.uint64(32)).astype(np.int32)


def mark_boilerplate(rows: pa.Table, max_images: int | None) -> pa.Table:
    """Mark the captions that more than `max_images` different images bear. All rows of a caption must be in `rows`."""
    if max_images is None or not rows.num_rows:
        return rows
    caption, content = _numbers(rows, "caption"), _numbers(rows, "content")
    pairs = np.unique(np.stack([caption, content]), axis=1)
    captions, num_images = np.unique(pairs[0], return_counts=True)
    common = np.isin(caption, captions[num_images > max_images])
    mark = np.where(common, BOILERPLATE, KEEP).astype(np.int8)
    return rows.set_column(rows.schema.get_field_index("mark"), MARKS_SCHEMA.field("mark"), pa.array(mark))


def duplicate_keys(rows: pa.Table, distance: int | None, num_partitions: int) -> pa.Table:
    """[KEYS_SCHEMA] what each caption that is not marked, and its image, is compared by.

    The hash is cut into `distance` + 1 bands: two hashes that differ in no more bits agree in one band at least.
    """
    rows = rows.filter(pc.field("mark") == KEEP)
    order, file = _numbers(rows, "order"), _numbers(rows, "file")
    hashes = rows.column("perceptual").fill_null(0).to_numpy().astype(np.uint64)
    every = np.arange(rows.num_rows)
    places = _places(rows)
    parts = [(0, _numbers(rows, "content"), every, places), (1, _numbers(rows, "original"), every, places)]
    if distance is not None:
        firsts = np.unique(order, return_index=True)[1]  # an image is compared once, however many its captions
        textured = firsts[rows.column("perceptual").is_valid().to_numpy()[firsts]]
        nowhere = pa.nulls(len(textured), pa.large_binary())
        for band, keys in enumerate(bands(hashes, distance)):
            parts.append((_FIRST_BAND + band, keys, textured, nowhere))
    tables = [KEYS_SCHEMA.empty_table()]
    for kind, key, chosen, place in parts:
        columns = {
            "partition": partition_of(key[chosen], kind, num_partitions),
            "kind": np.full(len(chosen), kind, dtype=np.int8),
            "key": key[chosen],
            "order": order[chosen],
            "perceptual": hashes[chosen],
            "file": file[chosen],
            "place": place,
        }
        tables.append(pa.table(columns, schema=KEYS_SCHEMA))
    return pa.concat_tables(tables)


def find_duplicates(keys: pa.Table, distance: int | None) -> pa.Table:
    """[FOUND_SCHEMA] of a partition: the captions of duplicates of an earlier sample, in content or original file, and
    the images that are near another one."""
    if not keys.num_rows:
        return FOUND_SCHEMA.empty_table()
    kind, key, order = _numbers(keys, "kind"), _numbers(keys, "key"), _numbers(keys, "order")
    by_key = np.lexsort((order, key, kind))
    kind, key, order = kind[by_key], key[by_key], order[by_key]
    hashes, file = _numbers(keys, "perceptual")[by_key], _numbers(keys, "file")[by_key]
    starts = np.flatnonzero(np.r_[True, (kind[1:] != kind[:-1]) | (key[1:] != key[:-1])])
    ends = np.r_[starts[1:], len(key)]
    mark = np.zeros(len(key), dtype=np.int8)
    first = np.arange(len(key))  # of the samples that agree with each
    several = ends - starts > 1
    for start, end in zip(starts[several].tolist(), ends[several].tolist(), strict=True):
        if kind[start] < _FIRST_BAND:
            mark[start:end] = np.where(order[start:end] != order[start], DUPLICATE, KEEP)
            first[start:end] = start
        elif distance is not None:
            samples = start + np.unique(order[start:end], return_index=True)[1]
            mark[samples[has_near(hashes[samples], distance)]] = NEAR_DUPLICATE
    found = np.flatnonzero(mark)
    columns = {
        "mark": mark[found],
        "order": order[found],
        "file": file[found],
        "keeper": order[first[found]],
        "keeper_file": file[first[found]],
        "perceptual": hashes[found],
        "place": keys.column("place").take(pa.array(by_key[found])),
    }
    return pa.table(columns, schema=FOUND_SCHEMA)


def resolve(found: pa.Table, distance: int | None, max_captions: int) -> pa.Table:
    """[MARKS_SCHEMA] of what all partitions found: a mark for each sample that is dropped, and the captions that
    duplicates bring to the samples that they are duplicates of.

    A sample is a duplicate if an earlier one has its content or its original file; near ones are told among the rest,
    in their order: a picture is dropped if it is near one before it that is kept.
    """
    if not found.num_rows:
        return MARKS_SCHEMA.empty_table()
    is_duplicate = _numbers(found, "mark") == DUPLICATE
    duplicates, others = found.filter(pa.array(is_duplicate)), found.filter(pa.array(~is_duplicate))
    tables = [MARKS_SCHEMA.empty_table()]
    order, file, keeper, keeper_file = _keepers(duplicates)
    tables.append(_marks(order=order, file=file, keeper=keeper, mark=np.full(len(order), DUPLICATE)))

    if len(order):
        at = np.searchsorted(order, _numbers(duplicates, "order"))
        tables += _brought(duplicates, keeper[at], keeper_file[at], max_captions)
    candidates, firsts = np.unique(_numbers(others, "order"), return_index=True)
    rest = ~np.isin(candidates, order)
    candidates, firsts = candidates[rest], firsts[rest]
    if distance is not None and len(candidates):
        dropped = near_a_kept_one(_numbers(others, "perceptual")[firsts], distance)
        file = _numbers(others, "file")[firsts][dropped]
        mark = np.full(len(file), NEAR_DUPLICATE)
        tables.append(_marks(order=candidates[dropped], file=file, mark=mark))
    return pa.concat_tables(tables)


def _brought(
    duplicates: pa.Table, keeper: npt.NDArray[np.int64], keeper_file: npt.NDArray[np.int32], max_captions: int
) -> list[pa.Table]:
    """Marks: the first `max_captions` different captions that are brought to each keeper, and how many there are more.

    No more are needed, whichever of them the keeper has itself. A picture that says "no longer available" may have
    a million duplicates, and the file that it is in must not get as many rows.
    """
    order = _numbers(duplicates, "order")
    place = np.frombuffer(b"".join(duplicates.column("place").to_pylist()), _PLACE)
    # Found by content and by original file, a caption is there twice.
    once = np.unique(np.stack([order, place["number"]]), axis=1, return_index=True)[1]
    once = once[np.argsort(keeper[once], kind="stable")]
    order, place, keeper, keeper_file = order[once], place[once], keeper[once], keeper_file[once]
    by_caption = np.lexsort((place["caption"], keeper))  # stable: the first to bring a caption comes first
    same = (np.diff(keeper[by_caption]) == 0) & (place["caption"][by_caption][1:] == place["caption"][by_caption][:-1])
    mark = np.full(len(order), REPEATED)
    mark[by_caption[np.r_[True, ~same]]] = BROUGHT
    num_before = np.cumsum(mark == BROUGHT) - (mark == BROUGHT)
    rank = num_before - num_before[np.searchsorted(keeper, keeper)]
    mark[(mark == BROUGHT) & (rank >= max_captions)] = OVER_LIMIT
    kept = mark == BROUGHT
    columns = {name: place[name][kept] for name in _PLACE.names or ()}
    brought = _marks(order=order[kept], file=keeper_file[kept], keeper=keeper[kept], mark=mark[kept], **columns)
    kinds = np.stack([keeper, place["source"], mark])[:, ~kept]
    (keepers, sources, marks), firsts, counts = np.unique(kinds, axis=1, return_index=True, return_counts=True)
    file = keeper_file[~kept][firsts]
    return [brought, _marks(order=keepers, file=file, keeper=keepers, mark=marks, source=sources, number=counts)]


def _keepers(duplicates: pa.Table) -> tuple[npt.NDArray[Any], ...]:
    """Of each duplicate, ascending: its order and file, and those of the sample that is kept in its place, which no
    earlier one agrees with."""
    order, keeper = _numbers(duplicates, "order"), _numbers(duplicates, "keeper")
    chosen = np.lexsort((keeper, order))
    chosen = chosen[np.r_[True, np.diff(order[chosen]) > 0]] if len(chosen) else chosen
    order, keeper = order[chosen], keeper[chosen]
    file, keeper_file = _numbers(duplicates, "file")[chosen], _numbers(duplicates, "keeper_file")[chosen]
    while True:  # a keeper may be a duplicate itself, in the original where this one is in the content
        at = np.searchsorted(order, keeper).clip(max=max(len(order) - 1, 0))
        chained = order[at] == keeper if len(order) else np.zeros(0, bool)
        if not chained.any():
            return order, file, keeper, keeper_file
        keeper = np.where(chained, keeper[at], keeper)
        keeper_file = np.where(chained, keeper_file[at], keeper_file)


def _places(rows: pa.Table) -> pa.Array:
    """[large_binary] values of `_PLACE`."""
    places = np.empty(rows.num_rows, _PLACE)
    for name in _PLACE.names or ():
        places[name] = _numbers(rows, name)
    buffers = [None, pa.py_buffer(places.tobytes())]
    packed = pa.FixedSizeBinaryArray.from_buffers(pa.binary(_PLACE.itemsize), len(places), buffers)
    return packed.cast(pa.large_binary())


def _marks(**columns: npt.NDArray[Any]) -> pa.Table:
    """[MARKS_SCHEMA] zeros in the other columns."""
    num_rows = len(columns["order"])
    filled = {
        field.name: columns.get(field.name, np.zeros(num_rows)).astype(field.type.to_pandas_dtype())
        for field in MARKS_SCHEMA
    }
    return pa.table(filled, schema=MARKS_SCHEMA)


def partition_of(key: UInt64, kind: int, num_partitions: int) -> npt.NDArray[np.int32]:
    mixed = (key + np.uint64(kind)) * np.uint64(0x9E3779B97F4A7C15)
    return ((mixed >> np.uint64(32)) * np.uint64(num_partitions) >> np.uint64(32)).astype(np.int32)


def _numbers(table: pa.Table, name: str) -> npt.NDArray[Any]:
    return table.column(name).to_numpy()
