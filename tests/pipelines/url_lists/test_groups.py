"""Against a dictionary, which is how one would do it for a list that fits."""

import random

import pyarrow as pa
import pytest

from pipelines.url_lists import groups as url_groups
from pipelines.url_lists.groups import by_url
from pipelines.url_lists.rows import LIST_SCHEMA


def make_rows(num_rows, num_urls):
    rng = random.Random(0)
    rows = []
    for number in range(num_rows):
        captions = [f"caption {rng.randrange(9)}" for _ in range(rng.choice([0, 1, 1, 3]))]
        captions = list(dict.fromkeys(captions))
        rows.append(
            {
                "row": number,
                "url": f"http://a/{rng.randrange(num_urls)}.jpg",
                "caption": captions[0] if captions else None,
                "captions": captions,
                "license": rng.choice([None, "cc0", "by"]),
                "similarity": rng.random(),
                "nsfw": rng.choice([None, "UNLIKELY", "UNSURE", "true", "NSFW"]),
                "punsafe": rng.choice([None, 0.1, 0.5]),
                "pwatermark": rng.choice([None, 0.2]),
            }
        )
    return rows


def put_together(rows):
    by_url = {}
    for row in rows:
        by_url.setdefault(row["url"], []).append(row)
    expected = []
    for number, group in enumerate(by_url.values()):
        captions = list(dict.fromkeys(caption for row in group for caption in row["captions"]))
        unsafe = [row["nsfw"] for row in group if row["nsfw"] in ("true", "NSFW")]
        worst = {
            name: max((row[name] for row in group if row[name] is not None), default=None)
            for name in ("punsafe", "pwatermark")
        }
        first = {"caption": captions[0] if captions else None, "nsfw": unsafe[0] if unsafe else group[0]["nsfw"]}
        expected.append(group[0] | first | worst | {"row": number, "captions": captions})
    return expected


@pytest.mark.parametrize("most_bytes", [1 << 27, 20_000])  # in memory, over files
@pytest.mark.parametrize("num_urls", [1, 300, 10**9])
def test_a_url_has_all_its_captions_and_the_place_of_its_first_row(tmp_path, monkeypatch, most_bytes, num_urls):
    monkeypatch.setattr(url_groups, "_MOST_BYTES", most_bytes)
    rows = make_rows(1000, num_urls)
    tables = (pa.Table.from_pylist(rows[start : start + 70], schema=LIST_SCHEMA) for start in range(0, 1000, 70))
    found = list(by_url(tables, tmp_path))
    assert all(table.schema == LIST_SCHEMA for table in found)
    assert [row for table in found for row in table.to_pylist()] == put_together(rows)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]  # they are removed on the way


def test_a_placeholder_has_a_bounded_number_of_captions(tmp_path):
    rows = [{"row": number, "url": f"u{number % 2}", "captions": [f"c{number}"]} for number in range(4010)]
    (table,) = by_url(iter([pa.Table.from_pylist(rows, schema=LIST_SCHEMA)]), tmp_path)
    for number, captions in enumerate(table.column("captions").to_pylist()):
        assert captions == [f"c{2 * place + number}" for place in range(1000)]


def test_no_rows(tmp_path):
    assert list(by_url(iter([]), tmp_path)) == []
