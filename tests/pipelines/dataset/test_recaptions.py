"""Data sets of schema 3: captions with their origin."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import storage
from pipelines.dataset.format import (
    DATASET_SCHEMA,
    dataset_schema,
    digest,
    digest_of_manifest,
    identity,
    open_dataset,
    read_manifest,
    read_row_groups,
    write_data_file,
)
from pipelines.dataset.verification import verify
from tests.support.dataset_folder import make_dataset, make_recaptioned, make_samples, write_schema_1
from tests.support.dataset_page import inspect


def test_ids_are_those_without_recaptions_and_the_digest_is_another(tmp_path: Path) -> None:
    old, new = make_dataset(tmp_path / "old", 20), make_recaptioned(tmp_path / "new", 20)
    tables = [pa.concat_tables([pq.read_table(f"{info.uri}/{name}") for name in info.files]) for info in (old, new)]
    assert tables[0].schema.equals(DATASET_SCHEMA) and tables[1].schema.equals(dataset_schema(3))
    assert tables[0].column("sample_id").equals(tables[1].column("sample_id"))
    assert old.digest != new.digest and open_dataset(new.uri).caption_origins == ("original", "llava")
    assert make_recaptioned(tmp_path / "again", 20).digest == new.digest


def test_rows_without_recaptions_have_the_digest_that_they_always_had() -> None:
    rows = list(make_samples(3))
    assert [identity(row) for row in rows] == [row["sample_id"] for row in rows]
    marked = [{**row, "caption_origins": ["original"]} for row in rows]
    assert [identity(row) for row in marked] == [row["sample_id"] for row in rows]
    more = {"captions": ["a", "b", "c"], "caption_origins": ["original", "x", "y"]}
    lines = {
        identity({**rows[0], **more, **other})
        for other in ({}, {"captions": ["a", "c", "b"]}, {"caption_origins": ["original", "y", "x"]})
    }
    assert len(lines) == 3 and all(line.startswith(f"{rows[0]['sample_id']} ") for line in lines)


def test_captions_of_older_data_sets_are_original_ones(tmp_path: Path) -> None:
    rows = [{**row, "caption": row["captions"][0], "nouns": row["nouns"][0]} for row in make_samples(3)]
    write_schema_1(tmp_path / "first", rows, rows_per_group=4)
    second = make_dataset(tmp_path / "second", 3, num_captions=2)
    for uri, number in ((str(tmp_path / "first"), 1), (second.uri, 2)):
        info = open_dataset(uri)
        with storage.open_parquet(f"{uri}/{info.files[0]}") as file:
            table = read_row_groups(file, [0], ["captions", "caption_origins", "nouns"])
            assert table.column("caption_origins").to_pylist() == [["original"] * number] * 3
            assert "caption_origins" not in read_row_groups(file, [0]).column_names
        assert info.caption_origins == ("original",)


@pytest.mark.parametrize("change", ["text", "origin", "missing", "swapped"])
def test_changed_recaptions_are_found(tmp_path: Path, change: str) -> None:
    info = make_recaptioned(tmp_path / "data", 20)
    assert verify(info).problems == ()
    table = pq.read_table(f"{info.uri}/{info.files[0]}")
    rows = table.to_pylist()
    row = rows[9]
    assert row["caption_origins"] == ["original", "llava", "llava"]
    if change == "text":
        row["captions"][2] += "!"
    elif change == "origin":
        row["caption_origins"][1] = "blip"
    elif change == "missing":
        del row["caption_origins"][2]
    else:
        row["captions"][1:] = row["captions"][:0:-1]
    write_data_file(info.uri, "part-000000.parquet", pa.Table.from_pylist(rows, schema=table.schema), 8)
    problems = verify(info).problems
    assert (
        "data/part-000000.parquet row group 1: its sample ids and recaptions do not have the digest in the manifest"
        in (problems)
    )
    missing = "data/part-000000.parquet row group 1 row 1: has 3 captions, and origins of 2"
    assert (missing in problems) == (change == "missing")
    assert not [problem for problem in problems if "row group 0" in problem or "image or caption changed" in problem]


def test_the_card_and_the_page_show_origins(tmp_path: Path) -> None:
    info = make_recaptioned(tmp_path / "data", 20)
    summary, page = inspect(info.uri, tmp_path)
    assert summary["charts"]["captions, by origin"] == {"llava": 30, "original": 20}
    assert summary["schema_version"] == 3 and summary["num_captions"] == 50
    assert page.content.count('<span class="faint">llava</span>') == 30
    plain, page = inspect(make_dataset(tmp_path / "plain", 20).uri, tmp_path)
    assert "captions, by origin" not in plain["charts"] and '<span class="faint">' not in page.content


def test_manifest_and_files_agree(tmp_path: Path) -> None:
    info = make_recaptioned(tmp_path / "data", 20)
    manifest = read_manifest(info.uri, ["file", "row_group", "rows", "digest"])
    assert (
        digest_of_manifest(manifest)
        == info.digest
        == json.loads((tmp_path / "data/dataset.json").read_text())["digest"]
    )
    rows = pq.read_table(f"{info.uri}/{info.files[0]}").to_pylist()
    assert manifest.column("digest")[0].as_py() == digest(map(identity, rows[:8]))
