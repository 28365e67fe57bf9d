"""Clusters that do not come up."""

import os
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ray

from pipelines.cluster import start as cluster_start
from pipelines.cluster.session import ray_cluster, starts_here
from pipelines.cluster.start import join_cluster, start_cluster
from pipelines.errors import WorkFailedError

TIMED_OUT = "The current node timed out during startup. This could happen because some of the raylet failed to startup"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", *cluster_start._PATIENCE):
        monkeypatch.setenv(name, "")  # so that it is taken back what the code under test sets
        monkeypatch.delenv(name)


def failing_starts(monkeypatch: pytest.MonkeyPatch, *errors: Exception | None) -> list[dict[str, str | None]]:
    """In place of Ray's start: these errors, one by one; the time-outs that each start would have had."""
    remaining, seen = list(errors), []

    def init(**options: Any) -> None:
        seen.append({name: os.environ.get(name) for name in cluster_start._PATIENCE})
        if (error := remaining.pop(0)) is not None:
            raise error

    monkeypatch.setattr(ray, "init", init)
    return seen


def test_a_start_that_times_out_is_tried_once_more_with_more_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = failing_starts(monkeypatch, Exception(TIMED_OUT), None)
    start_cluster(num_cpus=1)
    assert set(seen[0].values()) == {None}
    assert all(int(seconds or 0) >= 60 for seconds in seen[1].values())
    assert capsys.readouterr().err == "Ray did not start in time; trying once more, with more time\n"


def test_a_start_that_times_out_twice_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = failing_starts(monkeypatch, Exception(TIMED_OUT), RuntimeError(f"Failed to start GCS. {TIMED_OUT}"))
    with pytest.raises(
        WorkFailedError, match=r"^Ray did not start on this machine \(Failed to start GCS\), .* less bu"
    ):
        start_cluster(num_cpus=1)
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            ValueError("Attempting to cap object store memory usage at 7 bytes, but the minimum allowed is 9"),
            "too little",
        ),
        (PermissionError(13, "Permission denied", "/scratch/ray"), "Permission denied: '/scratch/ray'"),
    ],
)
def test_what_more_time_does_not_heal_is_tried_once(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = failing_starts(monkeypatch, error)
    with pytest.raises(ValueError, match=message):
        start_cluster(num_cpus=1)
    assert len(seen) == 1


def test_processes_that_a_failed_start_has_left_are_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shutil.copy("/bin/sleep", tmp_path / "raylet")
    started: list[subprocess.Popen[bytes]] = []

    def init(**options: Any) -> None:
        started.append(subprocess.Popen([tmp_path / "raylet", "60"]))
        started.append(subprocess.Popen(["/bin/sleep", "60"]))
        raise Exception(TIMED_OUT)

    monkeypatch.setattr(ray, "init", init)
    try:
        with pytest.raises(Exception, match="timed out"):
            cluster_start._init({})
        assert started[0].wait(timeout=50) == -9
        assert started[1].poll() is None
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_a_long_tmpdir_does_not_keep_ray_from_starting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    with ray_cluster():
        assert ray.get(ray.remote(lambda: 7).remote()) == 7


def test_a_long_tmpdir_without_a_short_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_start, "_SHORT_FOLDERS", ("/proc",))
    monkeypatch.setenv("TMPDIR", "/" + "x" * 100)
    with pytest.raises(
        ValueError, match=r"^TMPDIR=/x+ is too long for Ray's sockets, .* at most 39 bytes, by RAY_TMPDIR"
    ):
        start_cluster(num_cpus=1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nothing_answers_is_one_line(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_start, "_SECONDS_TO_ANSWER", 0.3)
    address = f"{scheme}127.0.0.1:{free_port()}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert not starts_here()
    message = (
        f"^RAY_ADDRESS={address}: no cluster answers there within 0.3 s .Connection refused.; .* unset RAY_ADDRESS"
    )
    with pytest.raises(ValueError, match=message), ray_cluster():
        pass


def test_an_address_that_answers_late_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    joined = []
    monkeypatch.setattr(ray, "init", lambda address, **_: joined.append(address))
    port = free_port()

    def answer() -> None:
        time.sleep(0.3)
        with socket.create_server(("127.0.0.1", port)) as server:
            server.accept()[0].close()

    thread = threading.Thread(target=answer)
    thread.start()
    join_cluster(f"127.0.0.1:{port}")
    thread.join()
    assert joined == [f"127.0.0.1:{port}"]
    assert cluster_start._WAIT not in os.environ


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1:8265", "is the address of a job server"),
        ("head", "is not an address: give HOST:PORT"),
        ("head:port", "is not an address: give HOST:PORT"),
    ],
)
def test_what_is_not_an_address_of_a_cluster_is_refused_at_once(address: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^RAY_ADDRESS={address} {message}"):
        join_cluster(address)


def test_a_cluster_that_cannot_be_joined_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(address: str, **_: Any) -> None:
        raise ConnectionError("Could not find any running Ray instance. Please specify the one to connect to")

    monkeypatch.setattr(ray, "init", init)
    message = r"^RAY_ADDRESS=auto: no cluster can be joined there \(Could not find any running Ray instance\); "
    with pytest.raises(ValueError, match=message):
        join_cluster("auto")


def test_a_cluster_may_be_asked_for_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert starts_here()
