import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.url_lists.presets import PRESETS, Columns
from pipelines.url_lists.reading import LIST_SCHEMA, digest, list_files, read_list, shards
from pipelines.url_lists.rejected import RejectedRows
from tests.support.url_list_files import PAIRS, pairs_of, rows_of, write


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.csv", 'caption,url\n"a ""big"" dog",http://a/1.jpg\n"""quoted, with comma""",http://a/2.jpg\nNA,http://a/3.jpg\n'),
        ("x.tsv", "URL\tTEXT\n" + "".join(f"{url}\t{caption}\n" for url, caption in PAIRS)),
        ("x.tsv.gz", "URL\tTEXT\n" + "".join(f"{url}\t{caption}\n" for url, caption in PAIRS)),
        ("x.json", json.dumps([{"url": url, "caption": caption} for url, caption in PAIRS])),
        ("x.jsonl", "".join(json.dumps({"url": url, "caption": caption}) + "\n" for url, caption in PAIRS)),
        ("x.jsonl.gz", "\n".join(json.dumps({"url": url, "caption": caption}) for url, caption in PAIRS)),
    ],
)  # fmt: skip
def test_reads_every_kind(tmp_path, name, text):
    assert pairs_of(write(tmp_path / name, text)) == PAIRS


def test_reads_parquet_with_what_else_it_knows(tmp_path):
    table = pa.table(
        {
            "SAMPLE_ID": [7, 8],
            "URL": ["http://a/1", "http://a/2"],
            "TEXT": ["one", None],
            "LICENSE": ["cc0", "?"],
            "NSFW": ["UNLIKELY", None],
            "similarity": pa.array([0.25, None], pa.float32()),
            "punsafe": [0.5, 1.0],
        }
    )
    pq.write_table(table, tmp_path / "x.parquet")
    first, second = rows_of(tmp_path / "x.parquet")
    assert first == {
        "row": 0, "url": "http://a/1", "caption": "one", "captions": ["one"], "license": "cc0", "similarity": 0.25,
        "nsfw": "UNLIKELY", "punsafe": 0.5, "pwatermark": None,
    }  # fmt: skip
    assert second["row"] == 1 and second["url"] == "http://a/2"
    assert second["caption"] is None and second["captions"] == []


def test_numbers_are_read_as_numbers_also_where_the_first_are_missing(tmp_path):
    path = write(tmp_path / "x.csv", "url,caption,similarity,pwatermark\nu,c,,\nu,c,0.5,1\n")
    assert [(row["similarity"], row["pwatermark"]) for row in rows_of(path)] == [(None, None), (0.5, 1.0)]


def test_cc3m_and_cc12m_have_no_header(tmp_path):
    write(tmp_path / "a.tsv", 'a dog " runs\thttp://a/1.jpg\n"a cat\thttp://a/2.jpg\n')
    expected = [("http://a/1.jpg", 'a dog " runs'), ("http://a/2.jpg", '"a cat')]
    assert pairs_of(tmp_path / "a.tsv", PRESETS["cc3m"]) == expected
    write(tmp_path / "b.tsv", "".join(f"{url}\t{caption}\n" for url, caption in expected))
    assert pairs_of(tmp_path / "b.tsv", PRESETS["cc12m"]) == expected


def test_yfcc_joins_title_and_description(tmp_path):
    fields = [f"f{index}" for index in range(25)]
    fields[8], fields[9], fields[16], fields[18] = "A+dog%21", "on+the%20grass", "http://a/1.jpg", "http://cc/by"
    bare = [*fields]
    bare[8] = ""
    write(tmp_path / "x.tsv", "\t".join(fields) + "\n" + "\t".join(bare) + "\n")
    first, second = rows_of(tmp_path / "x.tsv", PRESETS["yfcc14m"])
    assert (first["url"], first["caption"], first["license"]) == (
        "http://a/1.jpg",
        "A dog! on the grass",
        "http://cc/by",
    )
    assert second["caption"] == "on the grass"


def test_redcaps_is_a_folder_of_annotation_files(tmp_path):
    for name, number in (("birds_2017", 1), ("cats_2018", 2)):
        item = {
            "image_id": "x",
            "url": f"http://i/{number}",
            "caption": f"c{number}",
            "raw_caption": "R",
            "subreddit": name,
        }
        write(tmp_path / f"{name}.json", json.dumps({"info": {}, "annotations": [item]}))
    write(tmp_path / "README.md", "no list")
    rows = rows_of(tmp_path, PRESETS["redcaps"])
    assert [(row["row"], row["url"], row["caption"]) for row in rows] == [
        (0, "http://i/1", "c1"),
        (1, "http://i/2", "c2"),
    ]


def test_coco_has_several_captions_per_image(tmp_path):
    content = {
        "licenses": [{"id": 3, "url": "http://cc/3"}],
        "images": [{"id": 9, "coco_url": "http://coco/9.jpg", "license": 3, "width": 2}, {"id": 8, "coco_url": "http://coco/8.jpg"}],
        "annotations": [{"image_id": 9, "id": 1, "caption": "one"}, {"image_id": 9, "id": 2, "caption": "two"}],
    }  # fmt: skip
    rows = rows_of(write(tmp_path / "captions.json", json.dumps(content)), PRESETS["coco"])
    assert [(row["url"], row["caption"], row["license"]) for row in rows] == [
        ("http://coco/9.jpg", "one", "http://cc/3"),
        ("http://coco/9.jpg", "two", "http://cc/3"),
    ]


def test_credentials_in_urls_are_left_out(tmp_path):
    write(tmp_path / "x.csv", "url,caption\n https://user:pa@ss@host/a@b.jpg?x=@ ,c\nhttp://host/@me,c\n")
    assert [row["url"] for row in rows_of(tmp_path / "x.csv")] == ["https://host/a@b.jpg?x=@", "http://host/@me"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", b"link,caption\nu,c\n", "no column url; it has link, caption: give --url-column"),
        ("x.tsv", b"url\ttitle\nu\tc\n", "no column caption or text; it has url, title: give --caption-column"),
        ("x.jsonl", b'{"url": "u"}\n', "no column caption or text; it has url"),
        ("x.json", b'{"a": 1}', "no list of objects"),
        ("x.json", b'[{"url": ', "corrupted or incomplete"),
        ("x.jsonl", b'{"url": "u", "caption": "c"}\n{"url"', "line 2: .*1 of 2 rows are bad (invalid_json 1)"),
        ("x.jsonl", b"[1]\n", "line 1: int 1; .*one object per image"),
        (
            "x.csv",
            b"url,caption\nu,c,d\n",
            "line 2: 3 fields, expected 2 (url, caption): 'u,c,d'; .*check the separator",
        ),
        ("x.csv", b"url,caption\nu,\xff\xfe\n", "line 2: byte 0xff in .*convert the list to UTF-8"),
        ("x.csv.gz", gzip.compress(b"url,caption\n" + b"u,c\n" * 9999, mtime=0)[:-30], "corrupted or incomplete"),
        ("x.parquet", b"PAR1 and no end", "corrupted or incomplete"),
        ("x.parquet", b"", "corrupted or incomplete"),
        ("x.txt", b"u", "unknown kind of list"),
    ],
)
def test_what_is_wrong_with_a_list_is_said_in_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")) as caught:
        rows_of(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def test_a_half_written_parquet_is_named(tmp_path):
    pq.write_table(pa.table({"url": ["u"] * 1000, "caption": ["c"] * 1000}), tmp_path / "x.parquet")
    (tmp_path / "x.parquet").write_bytes((tmp_path / "x.parquet").read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"x\.parquet: corrupted or incomplete"):
        rows_of(tmp_path)


def test_there_is_no_list(tmp_path):
    with pytest.raises(ValueError, match="no such file or folder"):
        list_files(str(tmp_path / "none.csv"))
    with pytest.raises(ValueError, match="no list in this folder"):
        list_files(str(tmp_path))


def test_an_empty_file_holds_no_rows(tmp_path):
    (tmp_path / "a.csv").touch()
    write(tmp_path / "b.csv", "url,caption\n")
    write(tmp_path / "c.json", "[]")
    write(tmp_path / "d.jsonl", "")
    write(tmp_path / "e.tsv", "\n\r\n\n")
    write(tmp_path / "f.csv", "\n\n")
    assert rows_of(tmp_path) == []


def test_digest_is_of_the_content(tmp_path):
    for name, text in (("a.csv", "url\nx\n"), ("b.csv", "url\nx\n"), ("c.csv", "url\ny\n")):
        write(tmp_path / name, text)
    a, b, c = (digest([str(tmp_path / name)]) for name in ("a.csv", "b.csv", "c.csv"))
    assert a == b != c
    assert digest(list_files(str(tmp_path))) not in (a, c)


@pytest.mark.parametrize(("sizes", "expected"), [([3, 3, 3], [4, 4, 1]), ([10], [4, 4, 2]), ([4], [4]), ([], [])])
def test_shards_are_full_but_for_the_last(sizes, expected):
    rows = iter(range(100))
    tables = [pa.table({"row": [next(rows) for _ in range(size)]}) for size in sizes]
    cut = list(shards(iter(tables), 4))
    assert [table.num_rows for table in cut] == expected
    assert [row for table in cut for row in table["row"].to_pylist()] == list(range(sum(sizes)))


def test_every_table_has_the_schema(tmp_path):
    write(tmp_path / "x.csv", "url,caption\nu,c\n")
    with RejectedRows(tmp_path / "rejected", 0) as rejected:
        tables = list(read_list(list_files(str(tmp_path)), Columns(), rejected))
    assert [table.schema for table in tables] == [LIST_SCHEMA]


def test_several_captions_in_a_row(tmp_path):
    lists = [["one", "two", "one", None, " "], [], None, ["three"]]
    expected = [("one", ["one", "two"]), (None, []), (None, []), ("three", ["three"])]
    for kind in (pa.list_(pa.string()), pa.large_list(pa.large_string()), pa.list_(pa.binary())):
        pq.write_table(pa.table({"url": ["u"] * 4, "caption": pa.array(lists, kind)}), tmp_path / "x.parquet")
        assert [(row["caption"], row["captions"]) for row in rows_of(tmp_path / "x.parquet")] == expected
    text = "\n".join(json.dumps({"url": "u", "caption": texts}) for texts in [*lists, "four"])
    rows = rows_of(write(tmp_path / "x.jsonl", text))
    assert [(row["caption"], row["captions"]) for row in rows] == [*expected, ("four", ["four"])]


def test_what_stands_for_a_missing_caption_is_not_a_word(tmp_path):
    pq.write_table(pa.table({"url": ["u"] * 2, "caption": [float("nan"), None]}), tmp_path / "x.parquet")
    pq.write_table(pa.table({"url": ["u"] * 2, "caption": [[7], [None]]}), tmp_path / "y.parquet")
    pq.write_table(pa.table({"url": ["u"] * 2, "caption": [7, 8]}), tmp_path / "z.parquet")
    write(tmp_path / "x.jsonl", '{"url": "u", "caption": NaN}\n{"url": "u", "caption": null}\n{"url": "u"}\n')
    write(tmp_path / "y.jsonl", '{"url": "u", "caption": 7}\n{"url": "u", "caption": [true]}\n')
    write(tmp_path / "x.csv", "url,caption\nu,\nu, \n")
    rows = rows_of(tmp_path)
    assert len(rows) == 13 and all(row["caption"] is None and row["captions"] == [] for row in rows)


def test_scores_that_are_not_numbers_are_missing(tmp_path):
    write(tmp_path / "x.csv", "url,caption,similarity\nu,c,n/a\nu,c,nan\nu,c,0.5\n")
    pq.write_table(
        pa.table({"url": ["u"] * 3, "caption": ["c"] * 3, "similarity": ["n/a", None, "0.5"]}), tmp_path / "x.parquet"
    )
    assert [row["similarity"] for row in rows_of(tmp_path)] == [None, None, 0.5] * 2


def test_a_column_that_the_user_names_exactly_comes_before_one_of_another_case(tmp_path):
    path = write(tmp_path / "x.csv", "URL,url,caption\nbig,small,c\n")
    with pytest.raises(ValueError, match="several columns may be the url"):
        rows_of(path)
    for name, url in (("URL", "big"), ("url", "small")):
        assert pairs_of(path, Columns(url=(name,), exact=True)) == [(url, "c")]


def test_columns_with_dots_and_spaces_in_their_names(tmp_path):
    pq.write_table(pa.table({"image.url": ["u"], "meta.caption": ["c"]}), tmp_path / "x.parquet")
    assert pairs_of(tmp_path / "x.parquet", Columns(url=("image.url",), caption=("meta.caption",))) == [("u", "c")]
    assert pairs_of(write(tmp_path / "x.csv", "url, caption\nu,c\n")) == [("u", "c")]


def test_line_ends_of_every_kind(tmp_path):
    write(tmp_path / "a.tsv", "url\tcaption\r\nu\ta\rb\r\n\r\nu\tc\u2028d\x85e\r\n")
    (tmp_path / "b.csv").write_bytes(b'url,caption\r\nu,a\rb\r\nu,"c\r\nd"\r\n')
    assert [row["caption"] for row in rows_of(tmp_path)] == ["a\rb", "c\u2028d\x85e", "a b", "c\nd"]


def test_compressed_in_several_members(tmp_path):
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress(b"url,caption\nu,c\n") + gzip.compress(b"v,d\n"))
    assert pairs_of(tmp_path / "x.csv.gz") == [("u", "c"), ("v", "d")]
    with pa.output_stream(str(tmp_path / "x.tsv.zst"), compression="zstd") as file:
        file.write(b"url\tcaption\nu\tc\n")
    assert pairs_of(tmp_path / "x.tsv.zst") == [("u", "c")]
