import os
import resource
from pathlib import Path

import pytest

from pipelines.local.writable import check_file_writable, check_writable


def test_a_folder_that_can_be_made_is_not_made(tmp_path: Path) -> None:
    check_writable(str(tmp_path), "out")
    check_writable(str(tmp_path / "a" / ("n" * 255)), "out")
    check_writable((tmp_path / "a b").as_uri(), "out")
    check_file_writable(str(tmp_path / "a" / "page.html"), "out")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for uri, reason in {
        str(tmp_path / "file"): f"{tmp_path}/file is a file",
        str(tmp_path / "link" / "below" / "it"): f"{tmp_path}/file is a file",
        f"{tmp_path}/{'ü' * 128}": "File name too long",  # 256 bytes
        f"{tmp_path}/{'n' * 300}/a": "File name too long",
        "/proc/self/nowhere": "in /proc/",  # read-only, also for root
        f"{tmp_path}/caf\udce9": "the name is not UTF-8",
    }.items():
        with pytest.raises(ValueError, match=reason.replace(".", r"\.")) as caught:
            check_writable(uri, "out")
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"out=.* is a folder: give the name of a file"):
        check_file_writable(str(tmp_path), "out")
    with pytest.raises(ValueError, match=r"out=.*/file/page.html cannot be written: .*/file is a file"):
        check_file_writable(f"{tmp_path}/file/page.html", "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_a_disk_without_room_is_found_by_writing(tmp_path: Path) -> None:
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))  # files may be made, and nothing written into them
    try:
        with pytest.raises(ValueError, match=r"out=.* cannot be written"):
            check_writable(str(tmp_path), "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == []
