"""The doctor's checks of object storage and MLflow, on real servers."""

import email.utils
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from pipelines import storage
from pipelines.doctor import services
from pipelines.doctor.services import StoreSpeed
from pipelines.tracking.places import database_uri


def test_a_store_is_measured_and_left_as_it_was(bucket: str) -> None:
    speed = services.measure_store(f"{bucket}/runs", 100_000)
    assert speed.seconds > 0 and speed.written > 0 and speed.read > 0
    assert storage.list_sizes(bucket) == {}


def test_a_missing_bucket_and_a_refused_key_are_named(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="there is no bucket 'no-such-bucket'; create it"):
        services.measure_store("s3://no-such-bucket/runs", 1000)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-and-secret")
    with pytest.raises(OSError, match="access is refused; check AWS_ACCESS_KEY_ID") as refused:
        services.measure_store(f"{bucket}/runs", 1000)
    assert "wrong-and-secret" not in str(refused.value)


def test_a_slow_store_is_a_warning() -> None:
    assert services.store("a", StoreSpeed(seconds=0.01, written=50e6, read=100e6)).status == "OK"
    slow = services.store("a", StoreSpeed(seconds=0.2, written=50e6, read=1e6))
    assert slow.status == "warning" and "200 ms a request, 50 MB/s written, 1 MB/s read" in slow.text


class Late(BaseHTTPRequestHandler):
    """A server whose clock is behind."""

    seconds = 0.0

    def do_HEAD(self) -> None:
        self.send_response_only(403)
        self.send_header("Date", email.utils.formatdate(time.time() - self.seconds, usegmt=True))
        self.end_headers()


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Late]]:
    server = HTTPServer(("127.0.0.1", 0), Late)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    yield Late
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(("seconds", "status"), [(0, "OK"), (120, "warning"), (1200, "fault")])
def test_the_clock_of_the_store_is_compared(seconds: float, status: str, late: type[Late]) -> None:
    late.seconds = seconds
    [finding] = services.store_clock()
    assert finding.status == status and "from that of 127.0.0.1" in finding.text


def test_a_store_that_is_away_tells_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert services.store_clock() == []


def test_a_database_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    finding = services.tracking(database_uri(str(tmp_path / "runs/mlflow.db")))
    assert finding.status == "OK" and "is not there yet, and can be made" in finding.text
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_database_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"not a database, whatever its name says" * 40)
    finding = services.tracking(database_uri(str(tmp_path / "mlflow.db")))
    assert finding.status == "fault" and "the file is not a SQLite database, or is corrupted" in finding.text
