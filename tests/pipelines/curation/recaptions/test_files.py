"""Files of recaptions: what is read, and what is refused."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.curation.recaptions.files import find_files, normal_key, read_recaptions

ROWS: list[dict[str, Any]] = [
    {"url": "http://a.example/1.jpg", "caption": "org", "re_caption": 'a "big", red dog\'s ball'},
    {"url": "http://a.example/2.jpg", "caption": "org", "re_caption": "über den Bäumen"},
    {"url": None, "caption": "org", "re_caption": None},
]


def write_csv(path: Path, **dialect: Any) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*ROWS[0]], **dialect)
        writer.writeheader()
        writer.writerows(ROWS)


WRITERS: dict[str, Callable[[Path], object]] = {
    "parquet": lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path),
    "jsonl": lambda path: path.write_text("".join(json.dumps(row) + "\n" for row in ROWS)),
    "csv": write_csv,
    "tsv": lambda path: write_csv(path, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None),
}


@pytest.mark.parametrize("ending", WRITERS)
def test_all_formats_hold_the_same(tmp_path: Path, ending: str) -> None:
    """What a model wrote is preferred to a column `caption` beside it."""
    WRITERS[ending](tmp_path / f"a.{ending}")
    for uri in (tmp_path, tmp_path / f"a.{ending}"):
        [file] = find_files(str(uri), 1, "url", ())
        assert (file.key, file.captions, file.uri) == ("url", ("re_caption",), str(tmp_path / f"a.{ending}"))
        read = [(row.key or None, [text or None for text in row.captions]) for row in next(read_recaptions(file))]
        assert read == [(row["url"], [row["re_caption"]]) for row in ROWS]
        assert [row.key or None for row in next(read_recaptions(file, keys_only=True))] == [row["url"] for row in ROWS]


def test_lists_of_captions_and_named_columns(tmp_path: Path) -> None:
    table = pa.table({"id": [7, 8], "short": ["a", None], "long": [["b", "c"], None]})
    pq.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text('{"id": 7, "short": "a", "long": ["b", "c"]}\n{"id": "8"}\n')
    (tmp_path / "notes.txt").write_text("not read")
    files = find_files(str(tmp_path), 1, "key", ("key=id", "caption=short", "caption=long"))
    assert [file.uri.rpartition("/")[2] for file in files] == ["a.parquet", "b.jsonl"]
    for file in files:
        rows = [(row.key, list(row.captions)) for batch in read_recaptions(file) for row in batch]
        assert rows[0] == ("7", ["a", "b", "c"]) and rows[1][0] == "8" and set(rows[1][1]) == {None}


def test_keys_that_are_the_same() -> None:
    assert normal_key("http://A.example/b.JPG#x", "url") == normal_key(" https://a.example/b.JPG", "url")
    assert normal_key("http://a.example/b.jpg", "url") != normal_key("http://a.example/B.jpg", "url")
    assert normal_key("AB" * 32, "sha256") == normal_key("ab" * 32, "sha256")
    assert normal_key("a/00017", "key") == "a/00017" and normal_key("A", "key") != normal_key("a", "key")
    assert normal_key(None, "key") is None and normal_key("  ", "url") is None


@pytest.mark.parametrize(
    ("name", "content", "columns", "message"),
    [
        ("a.csv", "url,alt\nx,y\n", (), "re_caption"),
        (
            "a.csv",
            "image,caption\nx,y\n",
            (),
            "has no column url, only image, caption; name it with --recaption-columns url",
        ),
        (
            "a.csv",
            "url,title\nx,y\n",
            ("caption=text",),
            "has no column text (--recaption-columns caption=text), only url",
        ),
        (
            "a.csv",
            "url,caption\nx,y\n",
            ("sha256=x",),
            "recaption_columns='sha256=x': give FIELD=COLUMN, with FIELD one of url",
        ),
        ("a.csv", "url,caption\nx,y\n", ("url=url", "url=id"), "recaption_columns='url=id': url is already given"),
        ("a.parquet", "half a file", (), "a.parquet: is corrupted or incomplete ("),
        ("a.jsonl", "{}", (), "has no column url, only none"),
        ("a.txt", "url", (), "no recaptions there; give a file or a folder of files that end in .parquet"),
    ],
)
def test_what_cannot_be_used_is_one_line(
    tmp_path: Path, name: str, content: str, columns: tuple[str, ...], message: str
) -> None:
    (tmp_path / name).write_text(content)
    if message == "re_caption":  # an original's name is among the usual ones, too
        assert find_files(str(tmp_path), 1, "url", columns)[0].captions == ("alt",)
        return
    with pytest.raises(ValueError, match=r"captions_from=|recaption_columns=") as caught:
        find_files(str(tmp_path), 1, "url", columns)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_row_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("url,caption\nx,y\nz\n")
    with pytest.raises(ValueError, match=r"captions_from=.*a\.csv: line 3 has 1 fields, the header 2"):
        list(read_recaptions(find_files(str(tmp_path), 1, "url", ())[0]))
    with pytest.raises(ValueError, match=r"captions_from=.*none: no recaptions there"):
        find_files(str(tmp_path / "none"), 1, "url", ())


def test_a_column_of_another_type_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"url": ["x"], "caption": [{"en": "a"}]}), tmp_path / "a.parquet")
    with pytest.raises(
        ValueError, match=r"a\.parquet: column caption is struct<.*> it must hold a text|column caption"
    ):
        find_files(str(tmp_path), 1, "url", ())
