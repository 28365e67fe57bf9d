"""What MLflow refuses, by real databases and servers; a server with other answers is played by a few lines of HTTP."""

import http.server
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric

from pipelines.tracking.errors import one_line, refusal_of

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With an experiment `kept`, and one `deleted` that was."""
    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    client = MlflowClient(tracking_uri=f"sqlite:///{file}")
    client.create_experiment("kept")
    client.delete_experiment(client.create_experiment("deleted"))
    return file


@pytest.fixture
def answering() -> Iterator[Any]:
    """Starts a server that gives one answer to everything; returns its address."""
    servers = []

    def start(status: int) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "/login")
                self.send_header("Content-Length", "18")
                self.end_headers()
                self.wfile.write(b"<html>hello</html>")

            do_POST = do_GET  # noqa: N815 (as the base class asks)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def make_run(uri: str, experiment: str) -> None:
    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    client.create_run(found.experiment_id)


def refusal(uri: str, experiment: str) -> str | None:
    with pytest.raises(Exception) as caught:  # noqa: PT011 (of any kind)
        make_run(uri, experiment)
    return refusal_of(caught.value, uri)


def altered(database: Path, folder: Path, version: str) -> str:
    shutil.copy(database, folder / "altered.db")
    with sqlite3.connect(folder / "altered.db") as connection:
        connection.execute("update alembic_version set version_num = ?", (version,))
    return f"sqlite:///{folder}/altered.db"


def test_a_deleted_experiment_says_how_it_is_restored(database: Path) -> None:
    uri = f"sqlite:///{database}"
    assert refusal(uri, "deleted") == (
        f"{uri}: experiment 2 was deleted: `MLFLOW_TRACKING_URI={uri} mlflow experiments restore --experiment-id 2` "
        "restores it, or give another --tracking.experiment"
    )


def test_a_deleted_run_says_how_it_is_restored(database: Path) -> None:
    uri = f"sqlite:///{database}"
    client = MlflowClient(tracking_uri=uri)
    run = client.create_run("1").info.run_id
    client.delete_run(run)
    message = f"^tracking_uri={uri}: run {run} was deleted: .* --run-id {run}` restores it$"
    with pytest.raises(ValueError, match=message), one_line(uri):
        client.log_batch(run, metrics=[Metric("loss", 1.0, 1, 1)])


@pytest.mark.parametrize("version", ["451aebb31d03", "ffffffffffff"])  # an old one; one that is not known yet
def test_a_database_of_another_version_is_to_be_upgraded(version: str, database: Path, tmp_path: Path) -> None:
    uri = altered(database, tmp_path, version)
    assert f"back it up and run `mlflow db upgrade {uri}`" in (refusal(uri, "kept") or "")


def test_a_read_only_database(database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # MLflow takes `file:` for a folder, and makes it
    uri = f"sqlite:///file:{database}?mode=ro&uri=true"
    assert "the database is read-only: give this user the right" in (refusal(uri, "kept") or "")


def test_a_file_that_is_not_a_database(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("notes\n" * 100)
    assert "not a SQLite database" in (refusal(f"sqlite:///{tmp_path}/notes.txt", "kept") or "")


@pytest.mark.parametrize("uri", ["postgres://user@127.0.0.1:9/mlflow", "ftp://127.0.0.1", "mlruns"])
def test_a_place_that_mlflow_does_not_know(uri: str) -> None:
    assert "give a server or database, like" in (refusal(uri, "kept") or "")


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "the server asks for other credentials (HTTP 401): set MLFLOW_TRACKING_USERNAME and"),
        (403, "the server denies access with these credentials (HTTP 403): set MLFLOW_TRACKING_USERNAME"),
        (404, "no MLflow server answers there, but another one (HTTP 404)"),
        (200, "no MLflow server answers there, but a page"),
        (302, "no MLflow server answers there, but a page"),
    ],
)
def test_a_server_that_refuses(status: int, message: str, answering: Any) -> None:
    assert message in (refusal(answering(status), "kept") or "")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_is_away_or_busy_does_not_refuse(
    status: int, answering: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    assert refusal(answering(status), "kept") is None
    assert refusal("http://127.0.0.1:9", "kept") is None


def test_one_record_that_is_refused_is_no_refusal_of_all(database: Path) -> None:
    client = MlflowClient(tracking_uri=f"sqlite:///{database}")
    run = client.create_run("1").info.run_id
    with pytest.raises(Exception, match="Names may only contain") as caught:
        client.log_batch(run, metrics=[Metric("a!", 1.0, 1, 1)])
    assert refusal_of(caught.value, "sqlite:///mlflow.db") is None


def test_credentials_in_an_address_are_not_shown(answering: Any) -> None:
    uri = answering(401).replace("http://", "http://me:hunter2@")
    assert "hunter2" not in (refusal(uri, "kept") or "hunter2")
