import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.curation.config import CurateConfig, Source
from pipelines.curation.raw import check_shards, describe, read_shards
from tests.support.raw_formats import IMAGE_FEATURE, read_all, write_hugging_face
from tests.support.raw_shards import good_rows

IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def write(path: Path, columns: dict[str, Any], features: dict[str, Any] | None = None) -> Path:
    table = pa.table(columns)
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)
    return path


def refusal(path: Path, *columns: str) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the caller looks at the message
        check_shards(read_shards([Source(name="x", uri=str(path))], columns), CurateConfig(raw=(str(path),), out="x"))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def test_rows_that_datasets_wrote_are_read_in_pieces(tmp_path: Path) -> None:
    rows = good_rows(range(230), width=64, height=64)
    folder = write_hugging_face(tmp_path / "hf", rows, 150)
    schema = pq.read_schema(next(folder.iterdir()))
    assert schema.field("image").type == IMAGE and json.loads(schema.metadata[b"huggingface"]) == IMAGE_FEATURE
    for rows_per_piece in (1, 1024):
        read = read_all(folder, rows_per_piece=rows_per_piece)
        assert [row["jpg"] for row in read] == [row["jpg"] for row in rows]
        assert [(row["captions"], row["url"]) for row in read] == [([row["caption"]], row["url"]) for row in rows]
    source = Source(name="x", uri=str(folder))
    (line,) = describe(read_shards([source]), [source])
    assert line == "x: Hugging Face parquet: images in image.bytes, captions in text; also url (2 files), 230 rows"
    assert len(read_all(folder / "train-{00000..00000}-of-00002.parquet")) == 150


@pytest.mark.parametrize(
    ("columns", "flags", "captions"),
    [
        ({"caption": ["a"], "text": ["b"]}, (), ["a"]),
        ({"caption": ["a"], "text": ["b"]}, ("caption=text",), ["b"]),
        ({"TEXT": ["a"]}, (), ["a"]),
        ({"sentences": [["a", None, "b"]]}, (), ["a", None, "b"]),
        ({"caption_0": ["a"], "caption_1": [None], "caption_2": ["c"]}, (), ["a", "c"]),
        ({"caption_10": ["b"], "caption_2": ["a"]}, (), ["a", "b"]),
        ({"en": ["a dog"], "de": ["ein Hund"], "fr": [["un chien"]]}, ("caption=en", "caption=de", "caption=fr"), None),
        ({"alt": pa.array([b"a"])}, (), ["a"]),
        ({"title": pa.array([None], pa.string())}, (), [None]),
    ],
)
def test_captions_have_usual_names_or_are_named(tmp_path: Path, columns, flags, captions) -> None:
    write(tmp_path / "0.parquet", {"image": pa.array([{"bytes": b"x", "path": None}], IMAGE), **columns})
    (row,) = read_all(tmp_path, *flags)
    assert row["jpg"] == b"x" and row["captions"] == (captions or ["a dog", "ein Hund", "un chien"])


@pytest.mark.parametrize(
    ("columns", "features", "flags"),
    [
        ({"img": pa.array([b"x"])}, None, ()),
        ({"image_bytes": pa.array([b"x"], pa.large_binary())}, None, ()),
        ({"anything": pa.array([{"bytes": b"x", "path": "a"}], IMAGE)}, None, ()),
        ({"anything": pa.array([b"x"])}, {"anything": {"_type": "Image"}}, ()),
        ({"mask": pa.array([{"bytes": b"y", "path": ""}], IMAGE), "image": pa.array([b"x"])}, None, ()),
        (
            {f"{name}": pa.array([{"bytes": name[:1].encode(), "path": ""}], IMAGE) for name in ("mask", "x")},
            None,
            None,
        ),
        (
            {"jpg": pa.array([{"bytes": b"x", "path": "0.jpg"}], IMAGE), "__key__": ["0"]},
            {"jpg": {"_type": "Image"}},
            (),
        ),
    ],
)
def test_images_are_structs_or_bytes_and_found_out_or_named(tmp_path: Path, columns, features, flags) -> None:
    write(tmp_path / "0.parquet", {**columns, "text": ["a"]}, features)
    if flags is None:
        assert "has several columns of images: mask, x; choose one with --columns image=…" in refusal(tmp_path)
        flags = ("image=x",)
    (row,) = read_all(tmp_path, *flags)
    assert row["jpg"] == b"x"


def test_other_columns_are_understood_and_foreign_ones_are_not(tmp_path: Path) -> None:
    columns = {
        "image": pa.array([{"bytes": b"x", "path": "a"}, None], IMAGE),
        "caption": ["a", "b"],
        "image_url": ["u", None],
        "LICENSE": ["cc-by", None],
        "sha256": ["f" * 64, "unknown"],  # what is no hash would make different images equal
        "punsafe": [0.5, None],
        "pwatermark": ["0.25", "none"],
        "status": ["draft", "draft"],  # not that of a download
        "row": [7, 7],
    }
    write(tmp_path / "0.parquet", columns, IMAGE_FEATURE["info"]["features"])
    first, second = read_all(tmp_path)
    assert first == {
        "jpg": b"x",
        "captions": ["a"],
        "url": "u",
        "license": "cc-by",
        "sha256": "f" * 64,
        "punsafe": 0.5,
        "pwatermark": 0.25,
    }
    assert second == {**dict.fromkeys(first), "captions": ["b"]}


def test_named_columns_of_img2datasets_shards_keep_what_the_download_says(tmp_path: Path) -> None:
    columns = {
        "jpg": [b"x", None],
        "caption": ["a", "b"],
        "long": ["a longer one", "b"],
        "status": ["success", "failed_to_download"],
        "error_message": [None, "HTTP Error 404: Not Found"],
        "row": [3, 4],
    }
    write(tmp_path / "0.parquet", columns)
    read = read_all(tmp_path, "caption=long")
    assert [row["captions"] for row in read] == [["a longer one"], ["b"]]
    assert [row["status"] for row in read] == columns["status"] and [row["row"] for row in read] == [3, 4]


def test_paths_without_bytes_are_refused_before_any_work(tmp_path: Path) -> None:
    path = write(tmp_path / "0.parquet", {"image": [{"bytes": None, "path": "a.jpg"}] * 3, "caption": ["a"] * 3})
    assert "column image holds only the paths of image files, not their bytes" in refusal(path)
    write(path, {"image": pa.array([{"bytes": None, "path": "a.jpg"}], IMAGE), "caption": ["a"]})
    assert "not their bytes" in refusal(path)
    write(path, {"image": ["a.jpg"], "caption": ["a"]})
    assert "column image is string; it must hold the bytes of image files" in refusal(path)
    write(path, {"image": pa.array([{"bytes": None, "path": "a.jpg"}, {"bytes": b"x"}], IMAGE), "caption": ["a", "b"]})
    assert [row["jpg"] for row in read_all(path)] == [None, b"x"]


@pytest.mark.parametrize(
    ("columns", "flags", "message"),
    [
        ({"image": [b"x"], "words": ["a"]}, (), "has no column caption, only image, words; raw shards have images and"),
        ({"picture_1": [b"x"], "text": ["a"]}, (), "has no column jpg, only picture_1, text"),
        ({"a": [1]}, (), "has no column jpg nor caption, only a"),
        (
            {"image": [b"x"], "text": ["a"]},
            ("caption=alt",),
            "has no column alt (--columns caption=alt), only image, text",
        ),
        ({"image": [b"x"], "text": [{"raw": "a"}]}, (), "column text is struct<raw: string>; it must hold a text or a"),
        (
            {"image": [[b"x"]], "text": ["a"]},
            (),
            "column image is list<element: binary>; it must hold the bytes of image",
        ),
    ],
)
def test_columns_that_are_not_found_are_named_with_the_remedy(tmp_path: Path, columns, flags, message) -> None:
    assert message in refusal(write(tmp_path / "0.parquet", columns), *flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("caption",), "columns='caption': give FIELD=COLUMN, with FIELD one of image, caption, url"),
        (("colour=x",), "columns='colour=x': give FIELD=COLUMN"),
        (("image=a", "image=b"), "columns='image=b': image is already 'a'; give one column for it"),
        (("caption=a", "caption=a"), "columns='caption=a' is given twice"),
    ],
)
def test_columns_that_are_not_understood(tmp_path: Path, flags, message) -> None:
    with pytest.raises(ValueError, match="columns=") as caught:
        read_shards([Source(name="x", uri=str(write(tmp_path / "0.parquet", {"a": [1]})))], flags)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("metadata", [b"{", b"[1]", b'{"info": 1}', b'{"info": {"features": [3]}}', b"[" * 100_000])
def test_metadata_that_are_not_as_datasets_writes_them_are_ignored(tmp_path: Path, metadata: bytes) -> None:
    table = pa.table({"image": [b"x"], "text": ["a"]}).replace_schema_metadata({"huggingface": metadata})
    pq.write_table(table, tmp_path / "0.parquet")
    assert [row["jpg"] for row in read_all(tmp_path)] == [b"x"]
