"""Bad rows of URL lists, in every kind of file."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.url_lists.presets import PRESETS
from tests.support.url_list_files import bad_rows_of, read, write

GOOD = "http://a/good.jpg"
GOOD_JSON = json.dumps({"url": GOOD, "caption": "c"})
RAGGED, UNCLOSED = "wrong_number_of_fields", "unclosed_quote"


@pytest.mark.parametrize(
    ("name", "lines", "expected"),
    [
        ("x.csv", ["url,caption", f"{GOOD},c", "u,two, blue", f"{GOOD},c", "u"], [(3, RAGGED), (5, RAGGED)]),
        ("x.csv", ["url,caption", f'{GOOD},"two', 'lines"', "u,v,w", f"{GOOD},c"], [(4, RAGGED)]),
        ("x.csv", ["url,caption", 'u,"never closed', f"{GOOD},c", f'{GOOD},"quoted"'], [(2, UNCLOSED)]),
        ("x.csv", ["url,caption", f"{GOOD},c", f"{GOOD},c", 'u,"never closed'], [(4, UNCLOSED)]),
        ("x.csv", ["url,caption", f"{GOOD},c", f"{GOOD},c", "u," + "x" * 140_000], [(4, "field_too_long")]),
        ("x.csv", ["url,caption", ",c", f"{GOOD},c", "  ,c", f"{GOOD},c"], [(2, "url_missing"), (4, "url_missing")]),
        ("x.tsv", ["url\tcaption", "u", f"{GOOD}\tc", "", "u\tc\tc", f"{GOOD}\tc"], [(2, RAGGED), (5, RAGGED)]),
        ("x.tsv", ["url\tcaption", "u\t" + "x" * 2_000_000, *2 * [f"{GOOD}\tc"]], [(2, "line_too_long")]),
        ("x.tsv", ["url\tcaption", "u\t" + "x" * 9_000_000, *2 * [f"{GOOD}\tc"]], [(2, "line_too_long")]),
        ("x.tsv", ["url\tcaption", "u\t" + "é" * 600_000, *2 * [f"{GOOD}\tc"]], [(2, "line_too_long")]),  # by bytes
        ("x.jsonl", [GOOD_JSON, '{"url": "u"', "[]", "", GOOD_JSON], [(2, "invalid_json"), (3, "not_an_object")]),
        ("x.jsonl", ['{"url": "u", "caption": "\\ud83d"}', GOOD_JSON, GOOD_JSON], [(1, "lone_surrogate")]),
        ("x.jsonl", ['{"url": ["u"], "caption": "c"}', GOOD_JSON, GOOD_JSON], [(1, "url_not_text")]),
        ("x.jsonl", ['{"url": 3, "caption": "c"}', GOOD_JSON, GOOD_JSON], [(1, "url_not_text")]),
        ("x.jsonl", [GOOD_JSON, '{"url": null, "caption": "c"}', GOOD_JSON], [(2, "url_missing")]),
        ("x.jsonl", [GOOD_JSON, '{"caption": "c"}', GOOD_JSON], [(2, "url_missing")]),
        ("x.jsonl", ['{"url": "u", "caption": {"en": "c"}}', GOOD_JSON, GOOD_JSON], [(1, "caption_not_text")]),
        ("x.json", [f"[{GOOD_JSON},", "", "7,", f"{GOOD_JSON}]"], [(3, "not_an_object")]),
        ("x.json", [f"[{GOOD_JSON},", '{"url": "u", "caption": "\\udc80"},', f"{GOOD_JSON}]"], [(2, "lone_surrogate")]),
    ],
)  # fmt: skip
def test_bad_rows_are_left_out_with_their_line_and_a_reason(tmp_path, name, lines, expected):
    path = write(tmp_path / name, "\n".join(lines))
    assert sorted(bad_rows_of(path)) == expected
    assert [row["url"] for row in read(path, max_bad_rows=1)[0]] == [GOOD] * 2


def test_bytes_that_are_not_utf8_are_bad_rows_in_every_kind(tmp_path):
    """Written by hand, since no library writes them."""
    (tmp_path / "x.tsv").write_bytes(b"url\tcaption\nu\tcaf\xe9\nu\tcaf\xc3\xa9\n")
    (tmp_path / "x.csv").write_bytes(b'url,caption\nu,"two\nlines"\nu,caf\xe9\n')
    (tmp_path / "x.jsonl").write_bytes(b'{"url": "u", "caption": "c"}\n{"url": "u", "caption": "caf\xe9"}\n')
    (tmp_path / "x.json").write_bytes(b'[{"url": "u", "caption": "c"},\n{"url": "u", "caption": "caf\xe9"}]')
    texts = pa.array([b"caf\xe9", b"c", b"caf\xc3\xa9"])
    pq.write_table(pa.table({"url": ["u"] * 3, "caption": texts}), tmp_path / "binary.parquet")
    pq.write_table(pa.table({"url": ["u"] * 3, "caption": texts.view(pa.string())}), tmp_path / "string.parquet")
    lines = {"x.tsv": 2, "x.csv": 4, "x.jsonl": 2, "x.json": 2, "binary.parquet": 1, "string.parquet": 1}
    for name, line in lines.items():
        assert bad_rows_of(tmp_path / name) == [(line, "invalid_utf8")], name


def test_one_percent_may_be_bad_and_more_is_refused(tmp_path):
    path = write(tmp_path / "x.csv", "url,caption\n" + "u,c\n" * 99 + "u,c,d\n")
    rows, entries = read(path)
    assert len(rows) == 99 and [row["row"] for row in rows] == list(range(99))
    found = "3 fields, expected 2 (url, caption): 'u,c,d'"
    assert entries == [{"file": str(path), "line": 101, "reason": "wrong_number_of_fields", "found": found}]
    write(path, "url,caption\n" + "u,c\n" * 98 + "u,c,d\n")
    with pytest.raises(ValueError, match=r"line 100: 3 fields, .*; 1 of 99 rows are bad .*--max-bad-rows 0\.01: check"):
        read(path)
    assert len(read(path, max_bad_rows=0.02)[0]) == 98


def test_a_list_without_any_good_row_is_given_up_early(tmp_path):
    write(tmp_path / "a.tsv", f"http://a/1.jpg,{'c' * 1000}\n" * 5000)  # commas: 5 MB, more than is read at once
    with pytest.raises(ValueError, match=r"line 1: 1 fields, expected 2 .* of 4,\d{3} rows so far are bad"):
        read(tmp_path, PRESETS["cc3m"])
