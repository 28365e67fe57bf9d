from pathlib import Path

import datasets
import pytest

from pipelines.curation.config import CurateConfig, Source
from pipelines.curation.pieces import curate_piece
from pipelines.curation.raw import describe, pieces_of, read_shards
from pipelines.curation.steps import sample_steps
from tests.support.raw_formats import read_all, write_folder
from tests.support.raw_shards import good_rows


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_rows_are_read_in_pieces_from_the_middle_of_the_file(tmp_path: Path, ending: str) -> None:
    rows = good_rows(range(200), width=64, height=64)
    rows[3]["caption"] = 'a "red", round ball' if ending == "tsv" else 'a "red",\nround ball'
    rows[150]["caption"] = "ein süßer Hund"
    folder = write_folder(tmp_path / "raw", rows, ending)
    for rows_per_piece in (1, 100, 1024):
        read = read_all(folder, rows_per_piece=rows_per_piece)
        assert [row["jpg"] for row in read] == [row["jpg"] for row in rows]
        assert [(row["captions"], row["url"]) for row in read] == [([row["caption"]], row["url"]) for row in rows]
    source = Source(name="x", uri=str(folder))
    (shard,) = read_shards([source])
    assert [len(pieces_of([shard], rows_per_piece)) for rows_per_piece in (1, 100, 1024)] == [4, 2, 1]
    (line,) = describe([shard], [source])
    assert line == f"x: images described by metadata.{ending}, captions in text (1 file), 200 rows"
    (folder / "images/000000000.jpg").write_bytes(b"another")
    assert read_shards([source])[0].version != shard.version


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_it_is_the_folder_that_datasets_reads(tmp_path: Path, ending: str) -> None:
    rows = good_rows(range(5), width=64, height=64)
    folder = write_folder(tmp_path / "raw", rows, ending)
    theirs = datasets.load_dataset(
        "imagefolder", data_dir=str(folder), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert isinstance(theirs, datasets.Dataset)
    described = theirs.cast_column("image", datasets.Image(decode=False)).to_list()
    ours = {row["url"]: (row["jpg"], row["captions"]) for row in read_all(folder)}
    assert ours == {row["url"]: (Path(row["image"]["path"]).read_bytes(), [row["text"]]) for row in described}


def test_missing_images_and_links_out_are_rows_with_a_reason(tmp_path: Path) -> None:
    rows = good_rows(range(6), width=64, height=64)
    rows[1]["jpg"] = None
    folder = write_folder(tmp_path / "raw", rows, "csv")
    (tmp_path / "outside.jpg").write_bytes(rows[2]["jpg"])
    (folder / "images/000000002.jpg").unlink()
    (folder / "images/000000002.jpg").symlink_to(tmp_path / "outside.jpg")
    source = Source(name="x", uri=str(folder))
    (shard,) = read_shards([source])
    assert "; 1 images are missing, first images/000000001.jpg" in describe([shard], [source])[0]
    (piece,) = pieces_of([shard], 100)
    config = CurateConfig(raw=("x",), out="y")
    report = curate_piece(piece, config, sample_steps(config, None), str(tmp_path / "work"))
    assert report.num_rows == 6 and report.drops == {"download_empty": 2} and report.notes == {"link": 1}


def test_several_captions_and_other_columns(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    line = '{"file_name": "./a.jpg", "captions": ["one", "two"], "license": "cc0", "punsafe": 0.25, "sha256": "?"}\n'
    (tmp_path / "metadata.jsonl").write_text(f"\n{line}\n")
    (row,) = read_all(tmp_path)
    assert row["captions"] == ["one", "two"] and row["license"] == "cc0" and row["punsafe"] == 0.25
    assert row["jpg"] == b"x" and row["sha256"] is None
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "metadata.csv").write_bytes("\ufeff,photo,en,de\r\n0,a.jpg,a dog,ein Hund\r\n".encode())
    (row,) = read_all(tmp_path, "image=photo", "caption=en", "caption=de")
    assert row["jpg"] == b"x" and row["captions"] == ["a dog", "ein Hund"] and row["url"] is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.csv", b"", "is empty; its first line has to name the columns"),
        ("metadata.csv", b"file_name,text\na.jpg,b,c\n", "line 2 has 3 fields, the header 2 (file_name, text)"),
        ("metadata.csv", b'file_name,text\na.jpg,"b\nc.jpg,d\n', "is not a row of a csv (unexpected end of data)"),
        ("metadata.csv", b"file_name,text\na.jpg,\xff\n", "line 2 is not UTF-8"),
        (
            "metadata.csv",
            b"file_name,text\n../a.jpg,b\n",
            "line 2 names '../a.jpg', which is not a path in its folder",
        ),
        ("metadata.csv", b"file_name,text\n/etc/passwd,b\n", "line 2 names '/etc/passwd', which is not a path in its"),
        ("metadata.csv", b"file_name,text\n,b\n", "line 2: file_name is '', not the path of an image"),
        (
            "metadata.csv",
            b"name,text\na.jpg,b\n",
            "has no column file_name, only name, text; name the one with the paths",
        ),
        ("metadata.csv", b"file_name,words\na.jpg,b\n", "has no column caption, only file_name, words"),
        ("metadata.tsv", b"file_name\ttext\na.jpg b\n", "line 2 has 1 fields, the header 2"),
        ("metadata.jsonl", b'{"file_name": "a.jpg", "text": "b"}\n{"file_name"\n', "line 2 is corrupted"),
        ("metadata.jsonl", b'{"file_name": 3, "text": "b"}\n', "line 1: file_name is '3', not the path of an image"),
        ("metadata.jsonl", b"[1]\n", "line 1 is corrupted"),
        ("metadata.jsonl", b"x" * 2_000_000, "line 1 has more than 1,048,576 bytes"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_line_and_remedy(tmp_path: Path, name, content, message) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="raw=") as caught:
        read_shards([Source(name="x", uri=str(tmp_path))])
    assert message in str(caught.value) and "\n" not in str(caught.value) and name in str(caught.value)
