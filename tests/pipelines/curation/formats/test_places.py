from pathlib import Path

import pytest

from pipelines import storage
from pipelines.curation.config import CurateConfig, Source
from pipelines.curation.formats.places import look
from pipelines.curation.raw import read_shards


@pytest.mark.parametrize(
    ("names", "uri", "format_", "found"),
    [
        (["0.tar", "1.tar", "0.parquet", "metadata.csv"], "", "tar", ("0.tar", "1.tar")),
        (["0.tar", "download.json", "00000.parquet"], "", "parquet", None),
        (["0.parquet", "metadata.csv"], "", "parquet", None),
        (["metadata.tsv", "a.jpg"], "", "folder", ("metadata.tsv",)),
        (["metadata.tsv", "metadata.csv"], "/metadata.csv", "folder", ("metadata.csv",)),
        (["a-08.tar", "a-09.tar", "a-10.tar"], "/a-{08..10}.tar", "tar", ("a-08.tar", "a-09.tar", "a-10.tar")),
        (
            ["0-0.tar", "0-1.tar", "1-0.tar", "1-1.tar"],
            "/{0..1}-{0..1}.tar",
            "tar",
            ("0-0.tar", "0-1.tar", "1-0.tar", "1-1.tar"),
        ),
        (["t-0.parquet", "v-0.parquet"], "/t-{0..0}.parquet", "parquet", ("t-0.parquet",)),
        (["A.TAR", "._A.TAR", ".B.tar"], "", "tar", ("A.TAR",)),
        (["0.tar"], "/0.tar", "tar", ("0.tar",)),
        (["a.jpg", "metadata.csv", "train.tsv"], "/train.tsv", "folder", ("train.tsv",)),
    ],
)
def test_what_lies_somewhere_is_found_out(tmp_path: Path, names, uri, format_, found) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"")
    place = look(f"{tmp_path}{uri}")
    assert (place.format, place.names) == (format_, found)
    assert place.folder.rstrip("/") == str(tmp_path)


def test_a_range_is_read_from_an_object_store(bucket: str) -> None:
    for name in ("00000.tar", "00001.tar", "other.tar"):
        storage.write_bytes(f"{bucket}/range/{name}", b"x")
    assert look(f"{bucket}/range/{{00000..00001}}.tar").names == ("00000.tar", "00001.tar")


@pytest.mark.parametrize(
    ("names", "uri", "message"),
    [
        (["0.tar", "2.tar"], "/{0..2}.tar", "1 of 3 files are missing, first 1.tar"),
        ([], "/{0..2}.tar", "3 of 3 files are missing, first 0.tar"),
        ([], "/{2..0}.tar", "the range {2..0} must go up, to at most 1,000,000 files"),
        ([], "/{0..999999999999}.tar", "to at most 1,000,000 files"),
        ([], "/{0..9999}-{0..9999}.tar", "to at most 1,000,000 files"),
        ([], "/{0..2}.zip", "a range names tars or parquet files of one folder"),
        ([], "/{0..2}/a.tar", "a range names tars or parquet files of one folder"),
        (["metadata.csv", "metadata.tsv"], "", "has metadata.csv and metadata.tsv; remove all but one"),
        (
            ["a.tar.gz"],
            "",
            "no finished raw shards; give the folder that `groupvit download` wrote; tars must not be compr",
        ),
        (["a.jpg"], "", "to read a folder of images, write one of metadata.jsonl, metadata.csv, metadata.tsv into it"),
        (["data/a.tar"], "", "there are some in its folder data: give that"),
        ([], "", "no finished raw shards"),
        (
            ["list.txt"],
            "/list.txt",
            "list.txt: is not a folder; give one, or a tar, a parquet file, a range of them, or a table of images",
        ),
        ([], "/none.tar", "no finished raw shards"),
    ],
)
def test_what_is_not_found_is_one_line_with_the_remedy(tmp_path: Path, names, uri, message) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match="raw=") as caught:
        read_shards([Source(name="x", uri=f"{tmp_path}{uri}")])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_sources_of_files_are_named_after_their_folder() -> None:
    uris = ("s3://b/cc3m/{00000..00331}.tar", "/data/coco/0.tar", "/data/raw", "/f8k/train.tsv", "x=/data/{0..1}.tar")
    assert [source.name for source in CurateConfig(raw=uris, out="x").sources] == ["cc3m", "coco", "raw", "f8k", "x"]
