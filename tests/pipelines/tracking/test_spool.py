"""The queue on disk, when the disk fails."""

import resource
from pathlib import Path

import pytest

from pipelines.tracking.spool import Record, Spool


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
