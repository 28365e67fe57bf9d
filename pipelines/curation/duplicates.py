"""Finds captions that are boilerplate and samples that are duplicates. Pure functions of parts of the index that a
shuffle has brought together.

The shuffles move rows of `MARKS_SCHEMA`: rows of the index, one per caption, and marks. A mark says why the sample with
its `order` is dropped, or that a duplicate brings a caption to the sample `keeper` (BROUGHT), or that duplicates of a
source have `number` captions that `keeper` does not need (REPEATED, OVER_LIMIT). In a mark DUPLICATE, `number` is the
file of `keeper`. Recaptions join the index later, and change none of this.

Only `resolve` needs the whole corpus, and only those samples that may be duplicates: some 100 bytes each. Whether an
image is dropped depends on which earlier images were kept, so this is decided in one place.
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
"""Drop reasons of samples. If several apply to a sample, the first counts."""

MARKS_SCHEMA = pa.schema(
    [
        *INDEX_SCHEMA,
        pa.field("file", pa.int32(), nullable=False),  # number of the file of the data set
        pa.field("keeper", pa.int64(), nullable=False),  # `order` of the sample that a duplicate's caption goes to
        pa.field("mark", pa.int8(), nullable=False),
        pa.field("origin", pa.int8(), nullable=False),  # number of the origin of a recaption; 0: an original caption
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
        pa.field("place", pa.large_binary()),  # of the caption; null for bands
    ]
)
"""Samples with the same kind and key may be duplicates, and are in the same partition."""

FOUND_SCHEMA = pa.schema(
    [
        pa.field("mark", pa.int8(), nullable=False),  # DUPLICATE, or NEAR_DUPLICATE: the sample may be one, or have one
        pa.field("order", pa.int64(), nullable=False),
        pa.field("file", pa.int32(), nullable=False),
        pa.field("keeper", pa.int64(), nullable=False),  # the first sample with the same kind and key
        pa.field("keeper_file", pa.int32(), nullable=False),
        pa.field("perceptual", pa.uint64(), nullable=False),
        pa.field("place", pa.large_binary()),
    ]
)
"""What a partition reports to `resolve`."""

_FIRST_BAND = 2
_PLACE = np.dtype(
    [
        (name, INDEX_SCHEMA.field(name).type.to_pandas_dtype())
        for name in ("number", "source", "caption", "piece", "run", "offset", "image_bytes", "bytes")
    ]
)
"""Locates a duplicate's caption."""


def file_of(shuffle_key: UInt64, num_files: int) -> npt.NDArray[np.int32]:
    """Splits the keys into `num_files` equal ranges, and returns the range of each key."""
    return ((shuffle_key >> np.uint64(32)) * np.uint64(num_files) >> np.uint64(32)).astype(np.int32)


def mark_boilerplate(rows: pa.Table, max_images: int | None) -> pa.Table:
    """Marks the captions of more than `max_images` different images. `rows` must contain all rows of a caption."""
    if max_images is None or not rows.num_rows:
        return rows
    caption, content = _numbers(rows, "caption"), _numbers(rows, "content")
    pairs = np.unique(np.stack([caption, content]), axis=1)
    captions, num_images = np.unique(pairs[0], return_counts=True)
    common = np.isin(caption, captions[num_images > max_images])
    mark = np.where(common, BOILERPLATE, KEEP).astype(np.int8)
    return rows.set_column(rows.schema.get_field_index("mark"), MARKS_SCHEMA.field("mark"), pa.array(mark))


def duplicate_keys(rows: pa.Table, distance: int | None, num_partitions: int) -> pa.Table:
    """[KEYS_SCHEMA] Returns the keys by which each unmarked caption and its image are compared.

    The hash is cut into `distance` + 1 bands. Two hashes that differ in at most `distance` bits agree in at least one
    band.
    """
    rows = rows.filter(pc.field("mark") == KEEP)
    order, file = _numbers(rows, "order"), _numbers(rows, "file")
    hashes = rows.column("perceptual").fill_null(0).to_numpy().astype(np.uint64)
    every = np.arange(rows.num_rows)
    places = _places(rows)
    parts = [(0, _numbers(rows, "content"), every, places), (1, _numbers(rows, "original"), every, places)]
    if distance is not None:
        firsts = np.unique(order, return_index=True)[1]  # compare an image once, however many captions it has
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
    """[FOUND_SCHEMA] Finds, in a partition, the captions of duplicates of an earlier sample (same content or original
    file), and the images that are near another one.
    """
    if not keys.num_rows:
        return FOUND_SCHEMA.empty_table()
    kind, key, order = _numbers(keys, "kind"), _numbers(keys, "key"), _numbers(keys, "order")
    by_key = np.lexsort((order, key, kind))
    kind, key, order = kind[by_key], key[by_key], order[by_key]
    hashes, file = _numbers(keys, "perceptual")[by_key], _numbers(keys, "file")[by_key]
    starts = np.flatnonzero(np.r_[True, (kind[1:] != kind[:-1]) | (key[1:] != key[:-1])])
    ends = np.r_[starts[1:], len(key)]
    mark = np.zeros(len(key), dtype=np.int8)
    first = np.arange(len(key))  # of the samples with the same kind and key
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
    """[MARKS_SCHEMA] Combines the results of all partitions: a mark for each dropped sample, and the captions that
    duplicates bring to the samples that they duplicate.

    A sample is a duplicate if an earlier one has the same content or original file. Near-duplicates are found among the
    rest, in order: an image is dropped if it is near an earlier one that is kept.
    """
    if not found.num_rows:
        return MARKS_SCHEMA.empty_table()
    is_duplicate = _numbers(found, "mark") == DUPLICATE
    duplicates, others = found.filter(pa.array(is_duplicate)), found.filter(pa.array(~is_duplicate))
    tables = [MARKS_SCHEMA.empty_table()]
    order, file, keeper, keeper_file = _keepers(duplicates)
    mark = np.full(len(order), DUPLICATE)
    tables.append(_marks(order=order, file=file, keeper=keeper, number=keeper_file, mark=mark))

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
    """Marks the first `max_captions` different captions brought to each keeper, and counts the others.

    More are never needed, whichever of them the keeper itself has. An image that says "no longer available" may have a
    million duplicates, and the file that it is in must not get as many rows.
    """
    order = _numbers(duplicates, "order")
    place = np.frombuffer(b"".join(duplicates.column("place").to_pylist()), _PLACE)
    # A caption appears twice if its duplicate is found both by content and by original file.
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
    """Returns, for each duplicate in ascending order: its order and file, and those of the sample kept instead, which
    is not itself a duplicate of an earlier one.
    """
    order, keeper = _numbers(duplicates, "order"), _numbers(duplicates, "keeper")
    chosen = np.lexsort((keeper, order))
    chosen = chosen[np.r_[True, np.diff(order[chosen]) > 0]] if len(chosen) else chosen
    order, keeper = order[chosen], keeper[chosen]
    file, keeper_file = _numbers(duplicates, "file")[chosen], _numbers(duplicates, "keeper_file")[chosen]
    while True:  # a keeper may itself be a duplicate: by original file, where this one is by content
        at = np.searchsorted(order, keeper).clip(max=max(len(order) - 1, 0))
        chained = order[at] == keeper if len(order) else np.zeros(0, bool)
        if not chained.any():
            return order, file, keeper, keeper_file
        keeper = np.where(chained, keeper[at], keeper)
        keeper_file = np.where(chained, keeper_file[at], keeper_file)


def _places(rows: pa.Table) -> pa.Array:
    """[large_binary] Packs values of `_PLACE`."""
    places = np.empty(rows.num_rows, _PLACE)
    for name in _PLACE.names or ():
        places[name] = _numbers(rows, name)
    buffers = [None, pa.py_buffer(places.tobytes())]
    packed = pa.FixedSizeBinaryArray.from_buffers(pa.binary(_PLACE.itemsize), len(places), buffers)
    return packed.cast(pa.large_binary())


def _marks(**columns: npt.NDArray[Any]) -> pa.Table:
    """[MARKS_SCHEMA] Makes marks, with zeros in the other columns."""
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
