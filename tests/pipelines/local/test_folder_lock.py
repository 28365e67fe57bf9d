import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.local.folder_lock import only_one


def test_one_at_a_time(tmp_path: Path) -> None:
    for _ in range(2):
        with only_one(str(tmp_path), "out"):
            message = rf"out={tmp_path}: another command works on it \(process {os.getpid()}\); wait"
            with pytest.raises(ValueError, match=message), only_one(str(tmp_path), "out"):
                pass
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyError), only_one(str(tmp_path), "out"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pipelines.local.folder_lock import only_one\n"
        "with only_one(sys.argv[1], 'out'): print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(ValueError, match=f"process {process.pid}"), only_one(str(tmp_path), "out"):
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    with only_one(str(tmp_path), "out"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_does_not_let_two_in(tmp_path: Path) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))  # as if no byte could be written any more
    try:
        again = pytest.raises(ValueError, match="another command works on it")
        with only_one(str(tmp_path), "out"), again, only_one(str(tmp_path), "out"):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def test_object_storage_is_not_held() -> None:
    with only_one("s3://bucket/run", "out"), only_one("s3://bucket/run", "out"):
        pass
