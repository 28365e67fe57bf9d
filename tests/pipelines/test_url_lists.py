import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.url_list_presets import PRESETS, Columns
from pipelines.url_lists import LIST_SCHEMA, digest, list_files, read_list, shards


def rows_of(path, columns=None):
    return [row for table in read_list(list_files(str(path)), columns or Columns()) for row in table.to_pylist()]


def pairs_of(path, columns=None):
    return [(row["url"], row["caption"]) for row in rows_of(path, columns)]


PAIRS = [("http://a/1.jpg", 'a "big" dog'), ("http://a/2.jpg", '"quoted, with comma"'), ("http://a/3.jpg", "NA")]


def write(path, text):
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return path


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
            "URL": ["http://a/1", None],
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
        "row": 0, "url": "http://a/1", "caption": "one", "license": "cc0", "similarity": 0.25, "nsfw": "UNLIKELY",
        "punsafe": 0.5, "pwatermark": None,
    }  # fmt: skip
    assert second["row"] == 1 and second["url"] == "" and second["caption"] is None


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
        ("x.json", b'[{"url": ', "damaged or half-written"),
        ("x.jsonl", b'{"url": "u", "caption": "c"}\n{"url"', "damaged or half-written"),
        ("x.jsonl", b"[1]\n", "a line is no object"),
        ("x.csv", b"url,caption\nu,c,d\n", "Expected 2 columns, got 3"),
        ("x.csv", b"url,caption\nu,\xff\xfe\n", "damaged or half-written"),
        ("x.csv.gz", gzip.compress(b"url,caption\n" + b"u,c\n" * 9999, mtime=0)[:-30], "damaged or half-written"),
        ("x.parquet", b"PAR1 and no end", "damaged or half-written"),
        ("x.parquet", b"", "damaged or half-written"),
        ("x.txt", b"u", "unknown kind of list"),
    ],
)
def test_what_is_wrong_with_a_list_is_said_in_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message.replace("(", r"\(")) as caught:
        rows_of(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_a_half_written_parquet_is_named(tmp_path):
    pq.write_table(pa.table({"url": ["u"] * 1000, "caption": ["c"] * 1000}), tmp_path / "x.parquet")
    (tmp_path / "x.parquet").write_bytes((tmp_path / "x.parquet").read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"x\.parquet: damaged or half-written"):
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
    assert [table.schema for table in read_list(list_files(str(tmp_path)), Columns())] == [LIST_SCHEMA]
