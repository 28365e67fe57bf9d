"""The join against one that is written down plainly."""

from collections import Counter, defaultdict

import numpy as np
import pyarrow as pa
import pytest

from pipelines.curation.decisions import decide
from pipelines.curation.duplicates import BOILERPLATE, DUPLICATE, KEEP, MARKS_SCHEMA, OVER_LIMIT, REPEATED
from pipelines.curation.recaptions.joining import JOIN_SCHEMA, follow_duplicates, join_recaptions


def rows_of(**columns: object) -> pa.Table:
    num_rows = len(next(iter(columns.values())))  # pyright: ignore[reportArgumentType]
    values = {field.name: np.zeros(num_rows, field.type.to_pandas_dtype()) for field in JOIN_SCHEMA}
    return pa.table(values | columns, schema=JOIN_SCHEMA)


@pytest.mark.parametrize("max_captions", [1, 3, 100])
def test_every_sample_gets_the_captions_of_its_key(max_captions: int) -> None:
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 60, 80)
    samples = rows_of(order=np.arange(80), keeper=np.arange(80), source=rng.integers(0, 3, 80), join=keys)
    given = {"join": rng.integers(30, 90, 400), "origin": rng.integers(1, 3, 400), "caption": rng.integers(1, 40, 400)}
    captions = rows_of(**given, order=np.arange(1000, 1400), offset=np.arange(400), bytes=np.full(400, 7))
    mixed = pa.concat_tables([samples, captions]).take(pa.array(rng.permutation(480)))
    found = join_recaptions(mixed, max_captions)
    assert found.schema.equals(MARKS_SCHEMA)

    expected: dict[tuple[int, int], list[int]] = defaultdict(list)
    dropped: dict[tuple[int, int], Counter[int]] = defaultdict(Counter)
    for index in range(400):
        for order in np.flatnonzero(keys == given["join"][index]).tolist():
            place = (order, int(given["origin"][index]))
            texts = [given["caption"][other] for other in expected[place]]
            later = [
                given["caption"][other]
                for other in range(index)
                if (given["join"][other], given["origin"][other]) == (given["join"][index], given["origin"][index])
            ]
            if given["caption"][index] in later:
                dropped[place][REPEATED] += 1
            elif len(texts) == max_captions:
                dropped[place][OVER_LIMIT] += 1
            else:
                expected[place].append(index)
    kept: dict[tuple[int, int], dict[int, int]] = defaultdict(dict)
    counted: dict[tuple[int, int], Counter[int]] = defaultdict(Counter)
    for row in found.to_pylist():
        place = (row["order"], row["origin"])
        assert row["keeper"] == row["order"] and row["image_bytes"] == 0
        if row["mark"] == KEEP:
            kept[place][row["number"]] = row["offset"]
        else:
            counted[place][row["mark"]] += row["number"]
    assert {place: [of[number] for number in range(len(of))] for place, of in kept.items()} == {
        place: indices for place, indices in expected.items() if indices
    }
    assert counted == {place: counts for place, counts in dropped.items() if counts}
    assert found.num_rows > 100


def test_without_one_side_nothing_is_joined() -> None:
    samples, captions = rows_of(order=[1], join=[5]), rows_of(order=[2], join=[5], origin=[1])
    for rows in (samples, captions, JOIN_SCHEMA.empty_table()):
        assert join_recaptions(rows, 10).num_rows == 0
    assert join_recaptions(pa.concat_tables([samples, rows_of(order=[2], join=[6], origin=[1])]), 10).num_rows == 0


def test_recaptions_of_a_duplicate_go_to_the_sample_that_is_kept() -> None:
    joined = rows_of(order=[3, 5, 9], keeper=[3, 5, 9], file=[0, 1, 2]).select(MARKS_SCHEMA.names)
    marks = rows_of(order=[5, 7], keeper=[2, 3], number=[8, 8], mark=[DUPLICATE] * 2).select(
        ["order", "keeper", "number"]
    )
    moved = follow_duplicates(joined, marks)
    assert moved.schema.equals(MARKS_SCHEMA)
    assert [(row["order"], row["keeper"], row["file"]) for row in moved.to_pylist()] == [
        (3, 3, 0),
        (5, 2, 8),
        (9, 9, 2),
    ]
    assert follow_duplicates(joined, marks.slice(0, 0)).equals(joined)


def test_recaptions_decide_on_no_sample() -> None:
    """Sample 0 is kept, with recaptions of its own and of its duplicate 5. 1 is boilerplate; its recaption is not."""
    samples = rows_of(
        order=[0, 0, 1], keeper=[0, 0, 1], number=[0, 1, 0], caption=[1, 2, 3], mark=[KEEP, KEEP, BOILERPLATE]
    )
    recaptions = rows_of(
        order=[5, 0, 0, 0, 0, 0, 1, 1],
        keeper=[0, 0, 0, 0, 0, 0, 1, 1],
        origin=[1, 1, 1, 2, 2, 2, 1, 2],
        number=[0, 1, 0, 0, 4, 7, 0, 3],
        caption=[11, 12, 11, 21, 0, 0, 13, 0],
        mark=[KEEP, KEEP, KEEP, BOILERPLATE, REPEATED, OVER_LIMIT, KEEP, REPEATED],
    )
    rows = pa.concat_tables([recaptions, samples]).select(MARKS_SCHEMA.names)
    for most, chosen in ((10, [11, 12]), (1, [11])):
        found = decide(rows, most)
        [kept] = found.kept
        assert [row["caption"] for row in kept.captions] == [1, 2][:most] and not kept.brought
        assert [row["caption"] for row in kept.recaptions] == chosen and kept.recaptions[0]["order"] == 0
        assert {origin: dict(drops) for origin, drops in found.recaption_drops.items()} == {
            1: {"caption_repeated": 1, "image_dropped": 1} | ({"caption_over_limit": 1} if most == 1 else {}),
            2: {"caption_boilerplate": 1, "caption_repeated": 4, "caption_over_limit": 7, "image_dropped": 3},
        }
        assert found.recaptions_kept == {1: len(chosen)} and found.recaptioned == {1: 1}
        assert found.drops == {0: {"caption_boilerplate": 1}} and found.captions_kept == {0: min(most, 2)}
