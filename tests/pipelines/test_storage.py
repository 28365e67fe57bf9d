import os
import stat

import pytest

from pipelines import storage
from tests.support.clutter import add_clutter


def test_writes_and_reads_back_with_folders_made(tmp_path):
    uri = storage.join(str(tmp_path), "a folder", "x#1.bin")
    storage.write_bytes(uri, b"one")
    storage.write_bytes(uri, memoryview(b"two"))
    assert storage.read_bytes(uri) == b"two"
    assert storage.read_bytes("file://" + str(tmp_path / "a%20folder" / "x%231.bin")) == b"two"
    assert storage.list_files(str(tmp_path / "a folder")) == ["x#1.bin"]
    assert stat.S_IMODE(os.stat(uri).st_mode) == 0o644


def test_lists_a_folder_with_all_below_it(tmp_path):
    for name, content in (("b/c/x", b"12"), ("a", b"1"), ("b/y", b"123")):
        storage.write_bytes(str(tmp_path / "folder" / name), content)
    folder = str(tmp_path / "folder")
    assert list(storage.list_sizes(folder + "/").items()) == [("a", 1), ("b/c/x", 2), ("b/y", 3)]
    assert storage.list_sizes(str(tmp_path / "none")) == {}
    assert storage.list_folders(folder) == ["b"] and storage.list_folders(str(tmp_path / "none")) == []
    assert storage.exists(folder) and storage.exists(folder + "/a") and not storage.exists(folder + "/none")


def test_relative_paths_start_at_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    storage.write_bytes("data/x", b"here")
    assert (tmp_path / "data/x").read_bytes() == b"here"
    assert storage.absolute("data/x") == str(tmp_path / "data/x")
    assert storage.absolute("s3://bucket/x") == "s3://bucket/x"


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    uri = str(tmp_path / "x")
    storage.write_bytes(uri, b"old")
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match=r"No space left on device: '.*/x'"):
            storage.write_bytes(uri, b"new")
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space left"):
        storage.write_bytes(uri, b"new")
    assert storage.read_bytes(uri) == b"old" and os.listdir(tmp_path) == ["x"]


def test_lists_files_only_and_nothing_for_no_folder(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "b").touch()
    (tmp_path / "a").touch()
    assert storage.list_files(str(tmp_path)) == ["a", "b"]
    assert storage.list_files(str(tmp_path / "nowhere")) == []


@pytest.mark.parametrize("uri", ["s3://", "s3:///x", "s3://key:secret@bucket/x"])
def test_no_bucket_or_credentials_in_the_uri(uri):
    with pytest.raises(ValueError, match="give s3://bucket/folder") as caught:
        storage.read_bytes(uri)
    assert "secret" not in str(caught.value)


def test_unknown_kind_of_uri():
    with pytest.raises(ValueError, match="ftp9://x: no path or URI that can be read"):
        storage.read_bytes("ftp9://x")


class Flaky:
    """Fails a number of times, then succeeds."""

    def __init__(self, *errors):
        self.errors = list(errors)
        self.num_calls = 0

    def __call__(self):
        self.num_calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def test_passing_errors_of_object_storage_are_tried_again(monkeypatch):
    pauses = []
    monkeypatch.setattr(storage, "_seen_to_work", {"bucket"})
    monkeypatch.setattr(storage.time, "sleep", pauses.append)
    flaky = Flaky(OSError("AWS Error SLOW_DOWN"), OSError("AWS Error ACCESS_DENIED"))
    assert storage.retry(flaky, "s3://bucket/x") == "done"
    assert flaky.num_calls == 3 and 0.25 <= pauses[0] <= 0.5 <= pauses[1] <= 1


@pytest.mark.parametrize(
    ("uri", "error", "num_calls"),
    [
        ("s3://bucket/x", OSError("AWS Error INTERNAL_FAILURE"), 8),
        ("s3://bucket/x", OSError("Couldn't deserialize thrift"), 1),
        ("s3://bucket/x", OSError("AWS Error ACCESS_DENIED"), 2),  # not served before
        ("s3://bucket/x", OSError("AWS Error NO_SUCH_BUCKET"), 1),
        ("s3://bucket/x", FileNotFoundError("x"), 1),
        ("s3://bucket/x", ValueError("a bug"), 1),
        ("/x", OSError("disk"), 1),
        ("file:///x", OSError("disk"), 1),
    ],
)
def test_attempts_are_bounded(monkeypatch, uri, error, num_calls):
    monkeypatch.setattr(storage.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(storage, "_seen_to_work", set())
    flaky = Flaky(*[error] * 10)
    with pytest.raises(type(error)):
        storage.retry(flaky, uri)
    assert flaky.num_calls == num_calls


@pytest.mark.parametrize("failing", [storage.StorageError("s3://bucket: the server fails"), MemoryError("no room")])
def test_failing_storage_is_not_called_damage(failing):
    with (
        pytest.raises(type(failing)) as caught,
        storage.reporting_corruption("s3://bucket/x.parquet", "write it again"),
    ):
        raise failing
    assert caught.value is failing


def test_what_systems_leave_beside_data_is_no_data(tmp_path):
    for name in ("a.jpg", "folder/_b.jpg", "folder/c.d.jpg"):
        storage.write_bytes(str(tmp_path / name), b"1")
    expected = storage.list_sizes(str(tmp_path)), storage.list_folders(str(tmp_path))
    add_clutter(tmp_path)
    (tmp_path / "Thumbs.db").unlink()
    (tmp_path / "desktop.ini").unlink()
    found = storage.list_sizes(str(tmp_path))
    assert {name: size for name, size in found.items() if name.endswith(".jpg")} == expected[0]
    assert storage.list_folders(str(tmp_path)) == expected[1] == ["folder"]
    assert [name for name in storage.list_files(str(tmp_path)) if storage.is_data(name)] == ["a.jpg"]
