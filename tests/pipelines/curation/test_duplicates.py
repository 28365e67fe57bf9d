import numpy as np
import pyarrow as pa
import pytest

from pipelines.curation.duplicates import (
    BOILERPLATE,
    DUPLICATE,
    KEEP,
    KEYS_SCHEMA,
    MARKS_SCHEMA,
    NEAR_DUPLICATE,
    decide,
    duplicate_keys,
    file_of,
    find_duplicates,
    mark_boilerplate,
)


def make_rows(num_rows, **columns):
    values = {field.name: np.zeros(num_rows, dtype=field.type.to_pandas_dtype()) for field in MARKS_SCHEMA}
    numbers = np.arange(num_rows)
    distinct = {name: (numbers + 1).astype(np.uint64) for name in ("caption", "content", "original")}
    return pa.table(values | {"order": numbers} | distinct | columns, schema=MARKS_SCHEMA)


def marks_of(rows, distance, num_partitions=7):
    """What the shuffles do: keys by partition, in no order, then marks by row."""
    keys = duplicate_keys(rows, distance, num_partitions)
    shuffled = keys.take(np.random.default_rng(0).permutation(len(keys)))
    partitions = shuffled.column("partition").to_numpy()
    assert not len(keys) or (partitions.min() >= 0 and partitions.max() < num_partitions)
    found = [
        find_duplicates(shuffled.filter(pa.array(partitions == number)), distance) for number in range(num_partitions)
    ]
    return decide(pa.concat_tables([*found, rows])).column("mark").to_pylist()


@pytest.mark.parametrize("distance", [0, 1, 4, 7])
def test_finds_every_near_duplicate_of_an_earlier_row(distance):
    rng = np.random.default_rng(distance)
    originals = rng.integers(2**64, size=300, dtype=np.uint64)
    flips = np.array(
        [
            np.uint64(sum(1 << int(bit) for bit in rng.choice(64, count, replace=False)))
            for count in rng.integers(0, 12, size=900)
        ]
    )
    hashes = np.concatenate([originals, originals[rng.integers(300, size=900)] ^ flips])[rng.permutation(1200)]
    apart = np.bitwise_count(hashes[:, None] ^ hashes[None])
    expected = [bool((apart[row, :row] <= distance).any()) for row in range(len(hashes))]
    found = marks_of(make_rows(len(hashes), perceptual=hashes), distance)
    assert [mark == NEAR_DUPLICATE for mark in found] == expected and 20 < sum(expected) < 900


def test_compares_more_than_fit_into_a_chunk():
    hashes = np.random.default_rng(0).integers(2**64, size=5000, dtype=np.uint64) & np.uint64(2**64 - 2**16)
    hashes[4500] = hashes[10] ^ np.uint64(1 << 63)
    found = marks_of(make_rows(5000, perceptual=hashes), 1)
    assert [row for row, mark in enumerate(found) if mark] == [4500]


def test_flat_pictures_and_a_switched_off_rule_compare_nothing():
    flat = pa.array([None] * 5, pa.uint64())
    assert marks_of(make_rows(5, perceptual=flat), 4) == [KEEP] * 5
    assert marks_of(make_rows(5), None) == [KEEP] * 5
    assert marks_of(make_rows(5), 0) == [KEEP] + [NEAR_DUPLICATE] * 4


def test_the_same_content_or_original_is_a_duplicate_and_named_before_a_near_one():
    rows = make_rows(
        6, content=[1, 2, 1, 3, 4, 5], original=[1, 2, 3, 4, 2, 5], perceptual=[1, 2**40, 1, 2**20 - 1, 9, 1]
    )
    assert marks_of(rows, 0) == [KEEP, KEEP, DUPLICATE, KEEP, DUPLICATE, NEAR_DUPLICATE]


def test_boilerplate_counts_different_images_and_drops_all_of_them():
    rows = make_rows(7, caption=[1, 1, 1, 2, 2, 2, 3], content=[1, 2, 3, 4, 4, 5, 6])
    marked = mark_boilerplate(rows, 2)
    assert marked.column("mark").to_pylist() == [BOILERPLATE] * 3 + [KEEP] * 4
    assert mark_boilerplate(rows, None) == rows
    # A good caption is not lost to an image whose caption is dropped.
    copies = make_rows(4, caption=[1, 1, 1, 2], content=[1, 2, 3, 1], original=[1, 2, 3, 1])
    assert marks_of(mark_boilerplate(copies, 2), 4)[3] == KEEP


def test_empty_parts_of_the_index_pass():
    empty = MARKS_SCHEMA.empty_table()
    assert find_duplicates(KEYS_SCHEMA.empty_table(), 4).num_rows == duplicate_keys(empty, 4, 3).num_rows == 0
    assert mark_boilerplate(empty, 1).num_rows == decide(empty).num_rows == 0


def test_files_are_equal_ranges_of_keys():
    keys = np.sort(np.random.default_rng(0).integers(2**64, size=100_000, dtype=np.uint64))
    files = file_of(keys, 10)
    assert (np.diff(files) >= 0).all() and np.bincount(files).min() > 9_500 and files.max() == 9
    assert file_of(np.array([0, 2**64 - 1], dtype=np.uint64), 3).tolist() == [0, 2]
