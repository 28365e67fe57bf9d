"""Whether recaptions and raw shards belong together is said before any work."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.cli.main import main
from pipelines.curation.config import CurateConfig, Source
from pipelines.curation.raw import pieces_of, read_shards
from pipelines.curation.recaptions.account import recaption_pieces
from pipelines.curation.recaptions.files import Join
from pipelines.curation.recaptions.looking import check_join
from tests.support.raw_formats import write_folder, write_hugging_face, write_tars
from tests.support.raw_shards import good_rows, write_shards

ROWS = good_rows(range(30), width=64, height=64)
WRITERS: Mapping[str, Callable[[Path, Sequence[Mapping[str, Any]]], Path]] = {
    "parquet": lambda folder, rows: write_shards(folder, rows, 10),
    "tars": lambda folder, rows: write_tars(folder, rows, 10),
    "hugging_face": lambda folder, rows: write_hugging_face(folder, rows, 10),
    "folder": lambda folder, rows: write_folder(folder, rows, "jsonl"),
}


def check(raw: Path, recaptions: Path, join: Join) -> None:
    config = CurateConfig(raw=(str(raw),), out="x", captions_from=(str(recaptions),), join=join, origins=("llava",))
    shards = read_shards([Source(name="x", uri=str(raw))])
    pieces = pieces_of(shards, 10)
    check_join(recaption_pieces(config, shards, len(pieces)), pieces, config)


def write_recaptions(path: Path, column: str, keys: Sequence[str | None]) -> Path:
    pq.write_table(pa.table({column: pa.array(keys, pa.string()), "recaption": ["a wooden table"] * len(keys)}), path)
    return path


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("join", ["url", "key", "sha256"])
def test_one_key_of_a_later_piece_is_enough(tmp_path: Path, kind: str, join: Join) -> None:
    """The hash of the file is computed where the raw shards do not have it."""
    if join == "key" and kind in ("hugging_face", "folder"):
        pytest.skip("they have no keys")
    raw = WRITERS[kind](tmp_path / "raw", ROWS)
    check(raw, write_recaptions(tmp_path / "a.parquet", join, [None, "other", ROWS[27][join]]), join)
    with pytest.raises(ValueError, match="has captions for none of the 30 rows of raw") as caught:
        check(raw, write_recaptions(tmp_path / "b.parquet", join, [None, "other", "http://none.example"]), join)
    assert "here it is 'other' or 'http://none.example'" in str(caught.value) and "\n" not in str(caught.value)
    assert f"there, {join} is '{ROWS[0][join]}' or " in str(caught.value)


def test_raw_shards_without_keys_are_named(tmp_path: Path) -> None:
    raw = WRITERS["folder"](tmp_path / "raw", ROWS[:3])
    with pytest.raises(ValueError, match="there, key is missing everywhere, and here it is 'other'"):
        check(raw, write_recaptions(tmp_path / "a.parquet", "key", ["other"]), "key")


def test_keys_of_several_passes_of_a_download_mean_nothing(tmp_path: Path) -> None:
    config = CurateConfig(raw=("a",), out="x", captions_from=("y",), join="key", origins=("llava",))
    first = read_shards([Source(name="x", uri=str(WRITERS["parquet"](tmp_path / "raw", ROWS[:10])))])
    second = read_shards([Source(name="x", uri=str(WRITERS["parquet"](tmp_path / "raw/retry-0001", ROWS[10:20])))])
    with pytest.raises(ValueError, match="join=key: a holds 2 passes of a download, and each counts its keys anew"):
        recaption_pieces(config, [*first, *second], 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--captions-from {tmp}/a.parquet --as llava", "captions_from='{tmp}/a.parquet' needs a key: give --join url"),
        ("--captions-from {tmp}/a.parquet --join url", "captions_from is given 1 times and as 0 times: give one --as"),
        (
            "--captions-from {tmp}/a.parquet --join url --as original",
            "as='original' is the name of the captions of raw",
        ),
        ("--captions-from {tmp}/a.parquet --join url --as a:b", "as='a:b' is not a name: give letters, digits"),
        ("--captions-from {tmp}/a.parquet --as a --captions-from x --as a --join url", "as='a' is given twice"),
        ("--join url", "join=url is about recaptions: give --captions-from URI, too"),
        ("--as llava", "as=('llava',) is about recaptions: give --captions-from URI, too"),
        ("--captions-from {tmp}/a.parquet --join uri --as llava", "join"),
        ("--captions-from {tmp}/none --join url --as llava", "captions_from={tmp}/none: no recaptions there"),
        ("--captions-from {tmp}/b.parquet --join url --as llava", "b.parquet: is corrupted or incomplete"),
        ("--captions-from {tmp}/a.parquet --join key --as llava", "a.parquet: has no column key, only url, recaption"),
        (
            "--captions-from {tmp}/a.parquet --join url --as llava",
            "a.parquet: has captions for none of the 3 rows of raw",
        ),
        ("--captions-from {tmp}/a.parquet --join url --as llava --plan", "has captions for none of the 3 rows of raw"),
        ("--captions-from {tmp}/a.parquet --join url --as llava --context-length 2", "context_length=2 is too small"),
        ("--captions-from {tmp}/a.parquet --join key --as llava --raw {tmp}/c", "join=key with 2 folders of raw"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    write_shards(tmp_path / "raw", ROWS[:3], 3)
    write_recaptions(tmp_path / "a.parquet", "url", ["http://none.example/1.jpg"])
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-20])
    words = arguments.format(tmp=tmp_path).split()
    assert main(["curate", "--raw", str(tmp_path / "raw"), "--out", str(tmp_path / "out"), *words]) == 2
    shown = capsys.readouterr().err.replace("looked at 1 of 1 files of recaptions", "").splitlines()[-1]
    assert message.format(tmp=tmp_path) in shown and shown.startswith("groupvit: error: ")
    assert not (tmp_path / "out").exists()
