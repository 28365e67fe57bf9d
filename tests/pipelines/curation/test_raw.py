import dataclasses

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.curation.config import CurateConfig, Source
from pipelines.curation.pieces import curate_piece
from pipelines.curation.raw import check_shards, pieces_of, read_rows, read_shards
from pipelines.curation.steps import Sample, check_scores, sample_steps
from tests.support.raw_shards import SCHEMA, good_rows, write_shards


def shards_of(folder):
    return read_shards([Source(name="x", uri=str(folder))])


def test_pieces_are_whole_row_groups_and_hold_all_rows_in_order(tmp_path):
    rows = good_rows(range(570), width=64, height=64)
    shards = shards_of(write_shards(tmp_path, rows, 350))
    assert [shard.rows for shard in shards] == [(100, 100, 100, 50), (100, 100, 20)]
    pieces = pieces_of(shards, 150)
    assert [(piece.first, piece.end, piece.num_rows) for piece in pieces] == [
        (0, 2, 200),
        (2, 4, 150),
        (0, 2, 200),
        (2, 3, 20),
    ]
    assert [piece.number for piece in pieces] == [0, 1, 2, 3]
    read = [row for piece in pieces for batch in read_rows(piece) for row in batch]
    assert [row["captions"] for row in read] == [[row["caption"]] for row in rows]
    wanted = ("jpg", "url", "key", "status", "sha256")
    assert [{name: row[name] for name in wanted} for row in read] == [
        {name: row[name] for name in wanted} for row in rows
    ]
    assert max(len(batch) for piece in pieces for batch in read_rows(piece)) <= 64


def test_knows_columns_in_any_case_and_of_any_text_type(tmp_path):
    table = pa.table(
        {
            "JPG": pa.array([b"x", None], pa.large_binary()),
            "Caption": pa.array(["a", "b"]).dictionary_encode(),
            "URL": pa.array(["u", None], pa.large_string()),
            "SIMILARITY": pa.array(["0.5", "none"]),
            "NSFW": ["NSFW", None],
            "key": [1, 2],
            "other": [1.0, 2.0],
        }
    )
    pq.write_table(table, tmp_path / "0.parquet")
    (piece,) = pieces_of(shards_of(tmp_path), 10)
    assert list(read_rows(piece)) == [
        [
            {"jpg": b"x", "captions": ["a"], "url": "u", "similarity": 0.5, "nsfw": "NSFW", "key": "1"},
            {"jpg": None, "captions": ["b"], "url": None, "similarity": None, "nsfw": None, "key": "2"},
        ]
    ]


C = ["a dog", "a ball"]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([[*C, None], [], None, ["nan"]]), [[*C, None], [None], [None], ["nan"]]),
        (pa.array([C, C], pa.large_list(pa.large_string())), [C, C]),
        (pa.array([C, C], pa.list_(pa.string(), 2)), [C, C]),
        (pa.array([C, C], pa.list_(pa.string_view())), [C, C]),
        (pa.array([[b"a dog", b"\xff"], [b"x"]]), [["a dog", None], ["x"]]),
        (pa.array(C, pa.string_view()), [[C[0]], [C[1]]]),
        (pa.array([b"a dog", b"\xff"]), [["a dog"], [None]]),
        (pa.array([1.5, float("nan"), None]), [[None]] * 3),  # what pandas makes of missing captions
        (pa.array([[1.5, float("nan")], [2.0]]), [[None, None], [None]]),
        (pa.array([1, 2]), [[None]] * 2),
        (pa.array([True, None]), [[None]] * 2),
        (pa.nulls(2), [[None]] * 2),
    ],
)
def test_captions_are_texts_or_lists_of_texts_and_numbers_are_missing_ones(tmp_path, column, expected):
    pq.write_table(pa.table({"jpg": [b"x"] * len(column), "caption": column}), tmp_path / "0.parquet")
    (piece,) = pieces_of(shards_of(tmp_path), 10)
    assert [row["captions"] for row in next(read_rows(piece))] == expected


def test_a_column_of_several_captions_counts_before_that_of_one(tmp_path):
    columns = {"jpg": [b"x"] * 4, "caption": ["a", "b", "c", None], "captions": [["d", "e"], None, [], []]}
    pq.write_table(pa.table(columns), tmp_path / "0.parquet")
    (piece,) = pieces_of(shards_of(tmp_path), 10)
    assert [row["captions"] for row in next(read_rows(piece))] == [["d", "e"], ["b"], ["c"], [None]]


@pytest.mark.parametrize(
    ("name", "column", "message"),
    [
        ("caption", [{"en": "a"}], r"column caption is struct<en: string>; it must hold a text or a list of texts"),
        ("captions", [[{"raw": "a"}]], r"column captions is list<element: struct<raw: string>>; it must hold a text"),
        ("caption", [[["a"]]], r"column caption is list<element: list<element: string>>; it must hold a text or a"),
        ("jpg", [{"data": b"x", "path": "a"}], r"column jpg is struct<data: binary, path: string>; it must hold the"),
        ("jpg", ["aGVsbG8="], r"column jpg is string; it must hold the bytes of image files"),
        ("license", [{"id": 1}], r"column license is struct<id: int64>; it must hold one value a row"),
    ],
)
def test_columns_that_cannot_be_read_are_named_before_any_work(tmp_path, name, column, message):
    columns = {"jpg": [b"x"], "caption": ["a"], name: column}
    pq.write_table(pa.table(columns), tmp_path / "0.parquet")
    shards = shards_of(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        check_shards(shards, CurateConfig(raw=(str(tmp_path),), out="x"))
    assert "0.parquet" in str(caught.value) and "\n" not in str(caught.value)


def test_missing_texts_are_not_the_word_nan(tmp_path):
    columns = {"jpg": [b"x"] * 2, "caption": ["a", "b"], "license": [float("nan"), 4.0], "url": [float("nan"), None]}
    pq.write_table(pa.table(columns), tmp_path / "0.parquet")
    (piece,) = pieces_of(shards_of(tmp_path), 10)
    assert [(row["license"], row["url"]) for row in next(read_rows(piece))] == [(None, None), ("4.0", None)]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([True, False, None]),
        pa.array([1, 0, None], pa.int8()),
        pa.array([1.0, 0.0, None]),
        pa.array(["True", "False", ""]),
        pa.array(["NSFW", "UNLIKELY", None]),
    ],
)
def test_a_column_nsfw_of_any_type_is_honoured(tmp_path, column):
    table = pa.table({"jpg": [b"x"] * 3, "caption": ["a"] * 3, "NSFW": column})
    pq.write_table(table, tmp_path / "0.parquet")
    (piece,) = pieces_of(shards_of(tmp_path), 10)
    config = CurateConfig(raw=("x",), out="y")
    reasons = [check_scores(Sample(raw=row), config=config) for row in next(read_rows(piece))]
    assert reasons == ["nsfw", None, None]


def test_text_that_is_no_utf8_is_none(tmp_path):
    broken = pa.array([b"\xff\xfe", b"fine"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"jpg": [b"x", b"y"], "caption": broken}), tmp_path / "0.parquet")
    (piece,) = pieces_of(shards_of(tmp_path), 10)
    assert [row["captions"] for row in next(read_rows(piece))] == [[None], ["fine"]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a parquet file, or a corrupted one"),
        (b"PAR1 half-written", "is not a parquet file, or a corrupted one"),
        (None, "has no column jpg nor caption, only a"),
    ],
)
def test_bad_shards_are_named_and_may_be_skipped(tmp_path, content, message):
    write_shards(tmp_path, good_rows(range(3)), 3)
    bad = tmp_path / "00001.parquet"
    if content is None:
        pq.write_table(pa.table({"a": [1]}), bad)
    else:
        bad.write_bytes(content)
    shards = shards_of(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        check_shards(shards, CurateConfig(raw=(str(tmp_path),), out="x"))
    assert str(bad) in str(caught.value) and "\n" not in str(caught.value)
    check_shards(shards, CurateConfig(raw=(str(tmp_path),), out="x", skip_unreadable_shards=True))
    assert sum(piece.num_rows for piece in pieces_of(shards, 10)) == 3


def test_no_shards_and_no_rows_are_errors(tmp_path):
    with pytest.raises(ValueError, match="no finished raw shards"):
        shards_of(tmp_path)
    with pytest.raises(ValueError, match="no finished raw shards"):
        shards_of(tmp_path / "none")
    pq.write_table(
        pa.table({"jpg": pa.array([], pa.binary()), "caption": pa.array([], pa.string())}), tmp_path / "0.parquet"
    )
    with pytest.raises(ValueError, match="hold no rows"):
        check_shards(shards_of(tmp_path), CurateConfig(raw=(str(tmp_path),), out="x"))


def test_rows_that_a_later_shard_holds_are_not_there(tmp_path):
    rows = [row | {"row": number} for number, row in enumerate(good_rows(range(30), width=70, height=64))]
    rows[7] |= {"jpg": None, "status": "failed_to_download"}
    schema = SCHEMA.append(pa.field("row", pa.int64()))
    (shard,) = shards_of(write_shards(tmp_path / "raw", rows, 30, schema))
    (piece,) = pieces_of([dataclasses.replace(shard, superseded=(7, 99))], 100)
    config = CurateConfig(raw=("x",), out="y")
    report = curate_piece(piece, config, sample_steps(config, None), str(tmp_path / "work"))
    assert report.num_rows == 29 and not report.drops
