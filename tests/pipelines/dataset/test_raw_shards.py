import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.dataset.raw_shards import RECORD_VERSION, failure_reason, raw_shards, write_record
from tests.support.clutter import add_clutter


def write_shard(folder, number, rows, *, row_column=True, whole=True):
    folder.mkdir(exist_ok=True)
    columns = {"url": [f"http://a/{row}" for row in rows], "status": ["success"] * len(rows)}
    columns |= {"row": list(rows)} if row_column else {}
    pq.write_table(pa.table(columns), folder / f"{number:05d}.parquet")
    if whole:
        (folder / f"{number:05d}_stats.json").write_text(json.dumps({"count": len(rows), "status_dict": {}}))


def write_retry(folder, number, rows):
    write_shard(folder, number, rows)
    pq.write_table(pa.table({"row": list(rows)}), folder / "urls.parquet")


def record(*folders, finished=True):
    passes = [{"folder": folder, "rows": 10, "finished": finished} for folder in ("", *folders)]
    urls = {"list": "urls.tsv", "digest": "d", "rows": 10, "urls": 10, "sample": []}
    return {"version": RECORD_VERSION, "urls": urls, "fixed": {"rows_per_shard": 4}, "passes": passes}


def described(shards, root):
    return [(shard.uri.removeprefix(f"{root}/"), shard.superseded.tolist()) for shard in shards.shards]


def test_later_passes_supersede_rows_of_earlier_ones(tmp_path):
    for number, rows in enumerate([range(4), range(4, 8), range(8, 10)]):
        write_shard(tmp_path, number, rows)
    write_retry(tmp_path / "retry-0001", 0, [1, 3, 9])
    write_retry(tmp_path / "retry-0002", 0, [3])
    write_record(str(tmp_path), record("retry-0001", "retry-0002"))
    shards = raw_shards(str(tmp_path))
    assert shards.finished and shards.digest == "d"
    assert described(shards, tmp_path) == [
        ("00000.parquet", [1, 3]),
        ("00001.parquet", []),
        ("00002.parquet", [9]),
        ("retry-0001/00000.parquet", [3]),
        ("retry-0002/00000.parquet", []),
    ]
    left = [
        row
        for shard in shards.shards
        for row in np.setdiff1d(pq.read_table(shard.uri).column("row").to_numpy(), shard.superseded)
    ]
    assert sorted(left) == list(range(10))


def test_a_retry_under_way_supersedes_only_what_it_has_fetched(tmp_path):
    write_shard(tmp_path, 0, range(4))
    write_shard(tmp_path, 1, range(4, 8))
    write_retry(tmp_path / "retry-0001", 0, [0, 1, 2, 5])
    pq.write_table(pa.table({"row": [0, 1, 2, 5, 6, 7]}), tmp_path / "retry-0001" / "urls.parquet")
    write_record(str(tmp_path), record("retry-0001", finished=False))
    shards = raw_shards(str(tmp_path))
    assert not shards.finished
    assert [superseded for *_, superseded in described(shards, tmp_path)] == [[0, 1, 2], [5], []]


@pytest.mark.parametrize("statistics", [None, "", '{"count":'])
def test_a_shard_without_whole_statistics_is_not_there(tmp_path, statistics):
    write_shard(tmp_path, 0, range(4))
    write_shard(tmp_path, 1, range(4, 8), whole=False)
    if statistics is not None:
        (tmp_path / "00001_stats.json").write_text(statistics)
    write_record(str(tmp_path), record(finished=False))
    assert described(raw_shards(str(tmp_path)), tmp_path) == [("00000.parquet", [])]


def test_a_folder_of_img2dataset_itself(tmp_path):
    write_shard(tmp_path, 0, range(4), row_column=False)
    write_shard(tmp_path, 1, range(3), row_column=False, whole=False)
    shards = raw_shards(str(tmp_path))
    assert described(shards, tmp_path) == [("00000.parquet", [])]
    assert shards.digest is None and not shards.finished
    (tmp_path / "00000_stats.json").unlink()  # some remove them: then all shards count
    assert described(raw_shards(str(tmp_path)), tmp_path) == [("00000.parquet", []), ("00001.parquet", [])]


def test_what_is_no_folder_of_raw_shards(tmp_path):
    with pytest.raises(ValueError, match="no finished raw shards"):
        raw_shards(str(tmp_path / "nowhere"))
    write_record(str(tmp_path), record())
    with pytest.raises(ValueError, match="no shard has been finished yet"):
        raw_shards(str(tmp_path))
    write_record(str(tmp_path), record() | {"version": 99})
    with pytest.raises(ValueError, match="version 99"):
        raw_shards(str(tmp_path))
    (tmp_path / "download.json").write_text("{")
    with pytest.raises(ValueError, match="corrupted"):
        raw_shards(str(tmp_path))


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("refused_address: 10.0.0.1 is private", "refused_address"),
        ("Use of image disallowed by X-Robots-Tag directive", "opt_out"),
        ("HTTP Error 404: Not Found", "http_404"),
        ("<urlopen error timed out>", "timeout"),
        ("<urlopen error Tunnel connection failed: 407 Proxy Authentication Required>", "http_407"),
        ("<urlopen error Tunnel connection failed: 502 Bad Gateway>", "connection"),
        ("<urlopen error [Errno -2] Name or service not known>", "dns"),
        ("<urlopen error [Errno 111] Connection refused>", "connection"),
        ("<urlopen error [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed>", "tls"),
        ("IncompleteRead(3 bytes read, 6 more expected)", "truncated"),
        ("Image decoding error", "not_an_image"),
        ("<urlopen error unknown url type: ftp>", "invalid_url"),
        ("hash mismatch", "changed"),
        ("image too small", "filtered"),
        ("something new", "other"),
        (None, "other"),
    ],
)
def test_reasons_of_failures(message, reason):
    assert failure_reason(message) == reason


@pytest.mark.parametrize("whole", [True, False])
def test_files_that_are_no_data_are_skipped(whole, tmp_path):
    for number in range(2):
        write_shard(tmp_path, number, range(4), whole=whole)
    add_clutter(tmp_path)
    assert described(raw_shards(str(tmp_path)), tmp_path) == [("00000.parquet", []), ("00001.parquet", [])]
