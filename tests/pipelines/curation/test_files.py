"""Pieces and files by themselves, without Ray: what one task leaves is what the next one finds."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from groupvit.tokenizer import Tokenizer
from pipelines.curation.config import CurateConfig, Source
from pipelines.curation.duplicates import KEEP, MARKS_SCHEMA, duplicate_keys, find_duplicates, resolve
from pipelines.curation.files import read_file_records, write_file
from pipelines.curation.pieces import INDEX_SCHEMA, curate_piece, index_uri, read_report
from pipelines.curation.raw import pieces_of, read_shards
from pipelines.curation.steps import sample_steps
from pipelines.dataset.format import DATASET_SCHEMA, MANIFEST_SCHEMA, finish_dataset, sample_id
from pipelines.experiments.catalogue import debug
from pipelines.experiments.config import DataConfig, IngestConfig
from pipelines.ingest.plan import plan_ingest
from pipelines.ingest.slices import load_slices
from tests.support.image_files import encoded
from tests.support.raw_shards import SCHEMA, good_rows, picture, raw_row, write_shards

NUM_GOOD = 40


@pytest.fixture(scope="module")
def curated(tmp_path_factory):
    """Two pieces of one shard, and what they left."""
    folder = tmp_path_factory.mktemp("pieces")
    rows = good_rows(range(NUM_GOOD), width=70, height=64)
    rows[0]["caption"] = "A red bus, IMG_2034.jpg and <PERSON>"
    rows += [raw_row(100, rows[5]["jpg"]), raw_row(101, None), raw_row(102, encoded(picture(6, 70, 64), quality=60))]
    raw = write_shards(folder / "raw", rows, 1000)
    table = pq.read_table(raw / "00000.parquet")
    pq.write_table(table, raw / "00000.parquet", row_group_size=25)
    config = CurateConfig(raw=(str(raw),), out=str(folder / "out"), rows_per_piece=25)
    pieces = pieces_of(read_shards([Source(name="x", uri=str(raw))]), 25)
    work = str(folder / "out/_curation")
    reports = [curate_piece(piece, config, sample_steps(config, None), work) for piece in pieces]
    index = pa.concat_tables([pq.read_table(index_uri(work, piece.number)) for piece in pieces])
    return {
        "rows": rows,
        "pieces": pieces,
        "work": work,
        "reports": reports,
        "index": index,
        "out": str(folder / "out"),
    }


def test_a_piece_reports_what_became_of_its_rows(curated):
    assert [report.num_rows for report in curated["reports"]] == [25, 18]
    assert [dict(report.drops) for report in curated["reports"]] == [{}, {"download_http_404": 1}]
    for number, report in enumerate(curated["reports"]):
        kept = read_report(curated["work"], number)
        assert (kept.num_rows, kept.num_bytes, kept.drops) == (report.num_rows, report.num_bytes, report.drops)
    steps = {"read", "download", "caption", "header", "decode", "resize", "encode", "hash", "nouns", "write"}
    assert steps <= set(curated["reports"][0].seconds)


def test_the_index_has_canonical_orders_and_places_sorted_by_key(curated):
    index = curated["index"]
    assert index.schema.remove_metadata().equals(INDEX_SCHEMA) and len(index) == NUM_GOOD + 2
    orders = np.sort(index.column("order").to_numpy())
    assert orders.tolist() == [*range(25), *(2**32 + row for row in range(18) if row != 16)]
    for piece in (0, 1):
        own = index.filter(pa.array(index.column("piece").to_numpy() == piece))
        keys, offsets = own.column("shuffle_key").to_numpy(), own.column("offset").to_numpy()
        assert (np.diff(keys.astype(object)) > 0).all() and offsets[0] == 0 and (np.diff(offsets) > 0).all()


def marked(index):
    rows = index.replace_schema_metadata()
    rows = rows.append_column(MARKS_SCHEMA.field("file"), pa.array(np.full(len(rows), 3, np.int32)))
    rows = rows.append_column(MARKS_SCHEMA.field("keeper"), rows.column("order"))
    rows = rows.append_column(MARKS_SCHEMA.field("mark"), pa.array(np.full(len(rows), KEEP, np.int8)))
    rows = rows.append_column(MARKS_SCHEMA.field("origin"), pa.array(np.zeros(len(rows), np.int8)))
    marks = resolve(find_duplicates(duplicate_keys(rows, 4, 1), 4), 4, 10)
    return pa.concat_tables([marks, rows])


def test_a_file_holds_the_samples_of_its_rows_and_is_written_once(curated, tmp_path):
    out, work = str(tmp_path / "out"), curated["work"]
    places = {"out": out, "work": work, "source_names": ["mine"], "rows_per_group": 16, "max_captions": 10}
    assert write_file(marked(curated["index"]), **places) == (3, NUM_GOOD, NUM_GOOD + 2)
    path = tmp_path / "out/data/part-000003.parquet"
    table = pq.read_table(path)
    assert table.schema.equals(DATASET_SCHEMA)
    by_url = {row["url"]: row for row in table.to_pylist()}
    for number, given in enumerate(curated["rows"][:NUM_GOOD]):
        row = by_url[given["url"]]
        assert row["image"] == given["jpg"] and row["source"] == "mine" and (row["width"], row["height"]) == (70, 64)
        assert row["sample_id"] == sample_id(row["image"], *row["captions"]) and row["sha256"] == given["sha256"]
        assert row["nouns"][0] == (["bus", "person"] if number == 0 else ["dog", "ball", "number"])
        assert len(row["captions"]) == len(row["nouns"]) == (2 if number == 5 else 1)
    assert by_url["http://example.org/5.jpg"]["captions"] == [
        "a dog and the ball number 5",
        "a dog and the ball number 100",
    ]
    (record,) = read_file_records(work)
    assert record["drops"] == {"mine": {"duplicate": 1, "near_duplicate": 1}} and record["kept"] == {"mine": NUM_GOOD}
    assert record["captions_kept"] == {"mine": NUM_GOOD + 1}
    assert record["caption_drops"] == {"mine": {"image_dropped": 1}}
    assert [group["rows"] for group in record["manifest"]] == [16, 16, 8]
    json.dumps(record)
    path.unlink()
    assert write_file(marked(curated["index"]), **places) == (3, NUM_GOOD, NUM_GOOD + 2) and not path.exists()


def test_a_damaged_row_group_is_an_error_or_counted(curated, tmp_path):
    config = CurateConfig(raw=("x",), out="y", skip_unreadable_shards=True)
    piece = curated["pieces"][0]
    broken = tmp_path / "0.parquet"
    with open(piece.uri, "rb") as file:
        data = bytearray(file.read())
    data[4:600] = bytes(596)
    broken.write_bytes(data)
    damaged = type(piece)(**{**vars(piece), "uri": str(broken)})
    steps = sample_steps(config, None)
    report = curate_piece(damaged, config, steps, str(tmp_path / "work"))
    assert report.num_rows == 25 and report.drops["shard_unreadable"] == 25
    with pytest.raises(ValueError, match=r"0\.parquet: is not a parquet file, or a corrupted one"):
        curate_piece(damaged, CurateConfig(raw=("x",), out="y"), steps, str(tmp_path / "work"))


def test_all_captions_that_were_downloaded_are_drawn_in_as_many_epochs(tmp_path):
    """Shards as `download` writes them for five captions an image, here and there with a copy under another URL."""
    said = [
        [f"a dog and ball {number}, {word} time" for word in ("1st", "2nd", "3rd", "4th", "5th")]
        for number in range(12)
    ]
    images = [row["jpg"] for row in good_rows(range(12), width=70, height=64)]
    rows = [raw_row(n, images[n], captions=said[n][:3] if n < 4 else said[n]) for n in range(12)]
    rows += [raw_row(100 + n, images[n], captions=said[n][2:]) for n in range(4)]
    raw = write_shards(tmp_path / "raw", rows, 1000, SCHEMA.append(pa.field("captions", pa.list_(pa.string()))))
    config = CurateConfig(raw=(str(raw),), out=str(tmp_path / "out"))
    (piece,) = pieces_of(read_shards([Source(name="x", uri=str(raw))]), 1000)
    work = str(tmp_path / "out/_curation")
    report = curate_piece(piece, config, sample_steps(config, None), work)
    index = pq.read_table(index_uri(work, piece.number))
    places = {"out": config.out, "work": work, "source_names": ["x"], "rows_per_group": 4, "max_captions": 10}
    assert write_file(marked(index), **places)[1] == 12 and report.num_captions == 8 * 5 + 4 * (3 + 3)
    (record,) = read_file_records(work)
    assert record["captions_kept"] == {"x": 60} and record["caption_drops"] == {"x": {"caption_repeated": 4}}
    finish_dataset(config.out, [pa.Table.from_pylist(record["manifest"], schema=MANIFEST_SCHEMA)])

    base = debug()
    run = dataclasses.replace(
        base,
        data=DataConfig(sources=(config.out,)),
        ingest=IngestConfig(slice_size=12, window_size=12, augmentation="crop_flip"),
        training=dataclasses.replace(base.training, global_batch_size=12),
    )
    drawn = [
        texts[0].tobytes()
        for epoch in range(5)
        for texts in load_slices(plan_ingest(run), epoch, epoch + 1)[0]["token_ids"]
    ]
    expected = Tokenizer()([caption for captions in said for caption in captions], run.model.text.context_length)
    assert sorted(drawn) == sorted(ids.tobytes() for ids in expected)
