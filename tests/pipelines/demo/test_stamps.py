"""The listing of the stamps, and what is said where apt is missing. The pixels themselves need a Debian machine."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from pipelines.demo import stamps
from pipelines.demo.packages import unpack_packages

LISTING = json.loads(Path(stamps.__file__).with_name("stamps.json").read_text())


def test_listing_is_consistent() -> None:
    assert len(LISTING["classes"]) == 12
    paths = [path for group in ("classes", "distractors") for files in LISTING[group].values() for path in files]
    assert len(paths) == len(set(paths))
    assert (
        min(len(files) for files in LISTING["classes"].values()) >= stamps.HELD_OUT_EVERY
    )  # so that each has an unseen one
    for background in LISTING["backgrounds"]:
        assert all(noun in background["phrase"].split() for noun in background["nouns"])


def test_missing_apt_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"apt-get and dpkg-deb not found.*demo-data shapes"):
        unpack_packages(["some-package"], tmp_path / "cache")


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs Debian's dpkg-deb")
def test_package_is_unpacked_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a stand-in for apt-get that delivers a real .deb: dpkg-deb unpacks it, and the second call needs neither."""
    root = tmp_path / "deb"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN" / "control").write_text(
        "Package: pictures\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\nDescription: none\n"
    )
    (root / "usr").mkdir()
    (root / "usr" / "picture").write_text("pixels")
    archive = tmp_path / "pictures_1_all.deb"
    subprocess.run(["dpkg-deb", "--build", str(root), str(archive)], check=True, capture_output=True)
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "apt-get").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\ncp {archive} .\n')
    (tools / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=":")

    for _ in range(2):
        folders = unpack_packages(["pictures"], tmp_path / "cache")
        assert (folders["pictures"] / "usr" / "picture").read_text() == "pixels"
    assert (tmp_path / "calls").read_text() == "download pictures\n"


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs Debian's dpkg-deb")
def test_failed_download_is_tried_with_private_lists_and_then_explained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "apt-get").write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\ncase "$*" in *update) exit 0;; esac\n'
        'echo "E: Unable to locate package nothing" >&2; exit 100\n'
    )
    (tools / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=":")
    with pytest.raises(ValueError, match=r"apt-get download nothing failed \(E: Unable to locate package nothing\)"):
        unpack_packages(["nothing"], tmp_path / "cache")
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[0] == "download nothing"
    assert calls[1].endswith("update") and "Dir::State=" in calls[1]
    assert calls[2].endswith("download nothing") and "Dir::State=" in calls[2]
    assert not any((tmp_path / "cache" / "packages").iterdir())
