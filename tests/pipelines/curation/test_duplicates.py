import numpy as np
import pyarrow as pa
import pytest

from pipelines.curation.decisions import decide
from pipelines.curation.duplicates import (
    FOUND_SCHEMA,
    KEEP,
    KEYS_SCHEMA,
    MARKS_SCHEMA,
    REASONS,
    duplicate_keys,
    file_of,
    find_duplicates,
    mark_boilerplate,
    resolve,
)

BOILERPLATE, DUPLICATE, NEAR_DUPLICATE, BROUGHT = range(1, 5)


def make_rows(num_rows, **columns):
    """Rows of the index; without columns, samples of one caption each that have nothing in common but a flat hash."""
    values = {field.name: np.zeros(num_rows, dtype=field.type.to_pandas_dtype()) for field in MARKS_SCHEMA}
    numbers = np.arange(num_rows)
    distinct = {name: (numbers + 1).astype(np.uint64) for name in ("caption", "content", "original")}
    named = {"order": numbers, "source": numbers, "keeper": numbers}  # the source tells the row in what is decided
    return pa.table(values | named | distinct | columns, schema=MARKS_SCHEMA)


def marks_by_shuffle(rows, distance, num_partitions=7, max_captions=10):
    """What the shuffles do: keys by partition, in no order; then the rows with their marks."""
    keys = duplicate_keys(rows, distance, num_partitions)
    shuffled = keys.take(np.random.default_rng(0).permutation(len(keys)))
    partitions = shuffled.column("partition").to_numpy()
    assert not len(keys) or (partitions.min() >= 0 and partitions.max() < num_partitions)
    found = [
        find_duplicates(shuffled.filter(pa.array(partitions == number)), distance) for number in range(num_partitions)
    ]
    return pa.concat_tables([resolve(pa.concat_tables(found), distance, max_captions), rows])


def marks_of(rows, distance, num_partitions=7):
    """The mark of each row of `make_rows`."""
    decisions = decide(marks_by_shuffle(rows, distance, num_partitions), 10)
    marks = [-1] * len(rows)
    for sample in decisions.kept:
        marks[sample.row["source"]] = KEEP
    for row, reasons in decisions.drops.items():
        (reason,) = reasons
        marks[row] = REASONS.index(reason)
    return marks


def greedily(hashes, distance):
    """In order, what is near a kept one is dropped: the rule, word for word."""
    kept = np.empty(0, np.uint64)
    dropped = []
    for value in hashes:
        dropped.append(bool((np.bitwise_count(kept ^ value) <= distance).any()))
        if not dropped[-1]:
            kept = np.append(kept, value)
    return dropped


def bits(*places):
    return sum(1 << place for place in places)


@pytest.mark.parametrize("distance", [0, 1, 4, 7])
@pytest.mark.parametrize("num_partitions", [1, 7])
def test_finds_every_near_duplicate_of_a_kept_row(distance, num_partitions):
    rng = np.random.default_rng(distance)
    hashes = list(rng.integers(2**64, size=300, dtype=np.uint64))
    while len(hashes) < 1200:  # by small steps from one to the next
        flips = rng.choice(64, rng.integers(0, 6), replace=False).tolist()
        hashes.append(hashes[rng.integers(len(hashes))] ^ np.uint64(bits(*flips)))
    hashes = np.array(hashes)[rng.permutation(1200)]
    expected = greedily(hashes, distance)
    found = marks_of(make_rows(len(hashes), perceptual=hashes), distance, num_partitions)
    assert [mark == NEAR_DUPLICATE for mark in found] == expected and 20 < sum(expected) < 900


@pytest.mark.parametrize("num_partitions", [1, 3, 50])
def test_of_pictures_that_drift_the_kept_ones_stay_far_enough_apart(num_partitions):
    # 101 frames of a drive: each differs from the one before in one bit.
    frames = [bits(*range(max(0, frame - 64), min(frame, 64))) for frame in range(101)]
    hashes = np.array(frames, dtype=np.uint64)
    found = marks_of(make_rows(101, perceptual=hashes), 4, num_partitions)
    # Frame 5 is the first that is 5 bits from frame 0, and so on; after 64, bits go out again from the other end.
    assert [frame for frame, mark in enumerate(found) if mark == KEEP] == list(range(0, 101, 5))
    assert greedily(hashes, 4) == [mark == NEAR_DUPLICATE for mark in found]


def test_the_canonical_order_decides_not_the_place_of_the_rows():
    hashes = np.array([bits(*range(count)) for count in (3, 0, 6)], np.uint64)  # 3 bits apart, one after the other
    rows = make_rows(3, perceptual=hashes, order=[2, 1, 0], keeper=[2, 1, 0])
    assert marks_of(rows, 4) == [NEAR_DUPLICATE, KEEP, KEEP]
    rows = make_rows(3, perceptual=hashes, order=[0, 1, 2], keeper=[0, 1, 2])
    assert marks_of(rows, 4) == [KEEP, NEAR_DUPLICATE, NEAR_DUPLICATE]


def test_a_duplicate_that_is_dropped_makes_no_near_duplicates():
    # 1 is the original of 0 in another shape; 2 is near 1 alone.
    hashes = np.array([0, bits(*range(8)), bits(*range(10))], np.uint64)
    assert marks_of(make_rows(3, perceptual=hashes, original=[1, 1, 2]), 4) == [KEEP, DUPLICATE, KEEP]


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


def said(sample):
    return [(row["order"], row["number"]) for row in (*sample.captions, *sample.brought)]


def test_duplicates_bring_their_captions_to_the_sample_that_is_kept():
    # Samples 0 (captions a, b), 1 (b, c), 2 (d), 3 (e, f): 1 and 2 are 0 again, 2 by its original; 3 is another one.
    columns = {
        "order": [0, 0, 1, 1, 2, 3, 3],
        "number": [0, 1, 0, 1, 0, 0, 1],
        "source": [0, 0, 1, 1, 2, 3, 3],
        "caption": [1, 2, 2, 3, 4, 5, 6],
        "content": [9, 9, 9, 9, 8, 7, 7],
        "original": [1, 1, 2, 2, 2, 4, 4],
        "perceptual": pa.array([None] * 7, pa.uint64()),
    }
    rows = make_rows(7, **columns)
    for num_partitions in (1, 5):
        decisions = decide(marks_by_shuffle(rows, 4, num_partitions), 10)
        assert sorted(map(said, decisions.kept)) == [[(0, 0), (0, 1), (1, 1), (2, 0)], [(3, 0), (3, 1)]]
        assert decisions.drops == {1: {"duplicate": 1}, 2: {"duplicate": 1}}
        assert decisions.captions_kept == {0: 2, 1: 1, 2: 1, 3: 2}
        assert decisions.caption_drops == {1: {"caption_repeated": 1}}
        limited = decide(marks_by_shuffle(rows, 4, num_partitions, max_captions=1), 1)
        assert sorted(map(said, limited.kept)) == [[(0, 0)], [(3, 0)]]
        assert limited.caption_drops == {
            0: {"caption_over_limit": 1},
            1: {"caption_over_limit": 2},
            2: {"caption_over_limit": 1},
            3: {"caption_over_limit": 1},
        }


@pytest.mark.parametrize("max_captions", [1, 3, 7])
@pytest.mark.parametrize("num_partitions", [1, 5])
def test_many_duplicates_bring_what_is_needed_and_no_more(max_captions, num_partitions):
    # 400 samples of 1 or 2 captions out of 40, each one of 12 pictures, from 3 sources.
    rng = np.random.default_rng(max_captions)
    picture, source = rng.integers(12, size=400), rng.integers(3, size=400)
    captions = [rng.choice(40, rng.integers(1, 3), replace=False) + 1 for _ in range(400)]
    order = np.repeat(np.arange(400), list(map(len, captions)))
    columns = dict.fromkeys(("content", "original"), picture[order] + 1)
    columns |= {"order": order, "keeper": order, "source": source[order], "caption": np.concatenate(captions)}
    columns["number"] = np.concatenate([np.arange(len(each)) for each in captions])
    columns["perceptual"] = pa.array([None] * len(order), pa.uint64())
    table = marks_by_shuffle(make_rows(len(order), **columns), 4, num_partitions, max_captions)
    marks = table.column("mark").to_numpy()
    assert np.bincount(table.column("keeper").to_numpy()[marks == BROUGHT]).max() <= max_captions
    decisions = decide(table, max_captions)
    kept = {
        sample.row["order"]: [row["caption"] for row in (*sample.captions, *sample.brought)]
        for sample in decisions.kept
    }
    # By hand: all captions of a picture in their order, each once, up to the limit.
    expected = {}
    for number in range(12):
        of_picture = np.flatnonzero(picture == number).tolist()
        said = dict.fromkeys(caption for sample in of_picture for caption in captions[sample].tolist())
        expected[of_picture[0]] = list(said)[:max_captions]
    assert kept == expected
    num_told = decisions.captions_kept.total() + sum(drops.total() for drops in decisions.caption_drops.values())
    assert num_told == len(order) and sum(drops.total() for drops in decisions.drops.values()) == 400 - 12
    for each in range(3):
        told = decisions.captions_kept[each] + decisions.caption_drops[each].total()
        assert told == (source[order] == each).sum()


def test_captions_of_a_near_duplicate_and_its_copies_are_dropped_and_counted():
    rows = make_rows(3, content=[1, 2, 2], original=[1, 2, 2], perceptual=np.array([0, 1, 1], np.uint64))
    decisions = decide(marks_by_shuffle(rows, 4), 10)
    assert [said(sample) for sample in decisions.kept] == [[(0, 0)]]
    assert decisions.drops == {1: {"near_duplicate": 1}, 2: {"duplicate": 1}}
    assert decisions.caption_drops == {1: {"image_dropped": 1}, 2: {"image_dropped": 1}}


def test_an_image_is_dropped_for_its_captions_only_if_none_is_left():
    columns = {"order": [0, 0, 1, 2], "number": [0, 1, 0, 0], "source": [0, 0, 1, 2], "caption": [1, 2, 1, 1]}
    rows = mark_boilerplate(make_rows(4, **columns, content=[1, 1, 2, 3], original=[1, 1, 2, 3]), 2)
    decisions = decide(marks_by_shuffle(rows, None), 10)
    assert [said(sample) for sample in decisions.kept] == [[(0, 1)]]
    assert decisions.drops == {1: {"caption_boilerplate": 1}, 2: {"caption_boilerplate": 1}}
    assert decisions.caption_drops == {source: {"caption_boilerplate": 1} for source in range(3)}


def test_empty_parts_of_the_index_pass():
    empty = MARKS_SCHEMA.empty_table()
    assert find_duplicates(KEYS_SCHEMA.empty_table(), 4).num_rows == duplicate_keys(empty, 4, 3).num_rows == 0
    assert mark_boilerplate(empty, 1).num_rows == resolve(FOUND_SCHEMA.empty_table(), 4, 10).num_rows == 0
    assert not decide(empty, 10).kept


def test_files_are_equal_ranges_of_keys():
    keys = np.sort(np.random.default_rng(0).integers(2**64, size=100_000, dtype=np.uint64))
    files = file_of(keys, 10)
    assert (np.diff(files) >= 0).all() and np.bincount(files).min() > 9_500 and files.max() == 9
    assert file_of(np.array([0, 2**64 - 1], dtype=np.uint64), 3).tolist() == [0, 2]
