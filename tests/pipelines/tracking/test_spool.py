"""The queue on disk, when the disk fails."""

import resource
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipelines.tracking.records import Record
from pipelines.tracking.runs import RunIdentity
from pipelines.tracking.spool import Spool
from pipelines.tracking.tracker import Tracker
from tests.support.small_disk import small_disk


def test_what_a_full_disk_cut_is_written_again_as_a_whole(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    records: list[Record] = [{"text": f"number {index}", "file": "x"} for index in range(3)]
    spool.append(records[:1])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (spool.path.stat().st_size + 10, hard))  # 10 bytes fit, a line does not
    try:
        with pytest.raises(OSError, match="File too large"):
            spool.append(records[1:2])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert spool.num_unsent_bytes() == sum(len(text) for text in (*spool.path.read_text(), *spool._unwritten))
    spool.append(records[2:])
    assert [record for batch, _ in spool.unsent_batches() for record in batch] == records
    assert [record for batch, _ in Spool(tmp_path).unsent_batches() for record in batch] == records


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB."""
    with small_disk(tmp_path / "small", "64k") as folder:
        yield folder


def test_a_full_disk_loses_no_metric_once_there_is_room_again(
    tmp_path: Path, disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracker = Tracker(RunIdentity(uri=uri, experiment="e", run_name="r", job_id="j"), disk / "tracking")
    (disk / "large").write_bytes(bytes(disk.stat().st_blksize * 15))
    for step in range(500):
        tracker.log_metrics({"train/loss": float(step)}, step, training=True)
    deadline = time.monotonic() + 120
    while "No space left on device" not in caplog.text and time.monotonic() < deadline:
        time.sleep(0.1)
    (disk / "large").unlink()
    assert tracker.close(timeout=120)
    client = MlflowClient(uri)
    assert tracker.run_id is not None
    points = client.get_metric_history(tracker.run_id, "train/loss")
    assert sorted((point.step, point.value) for point in points) == [(step, float(step)) for step in range(500)]
    assert "No space left on device" in caplog.text


def test_records_that_a_full_disk_never_took_are_said_to_be_lost(
    tmp_path: Path, disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracker = Tracker(RunIdentity(uri=uri, experiment="e", run_name="r", job_id="j"), disk / "tracking")
    tracker.log_text("x" * 100_000, "too_large.txt")
    assert not tracker.close(timeout=3)
    assert "2 records are lost because the disk is full" in caplog.text
