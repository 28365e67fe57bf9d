"""Secrets in every place where a credential can stand are in nothing that commands write, log, print or record."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import storage
from tests.support.dataset_folder import make_dataset
from tests.support.mlflow_server import MlflowServer
from tests.support.object_store import ObjectStore
from tests.support.planted_secrets import IN_FILES, PLANTED, files_below, found, plant_in_home
from tests.support.scenes_folder import write_scenes

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow, pytest.mark.timeout(1500)]

PASSWORD_OF_URI, IN_ARGUMENTS = "planted-uri-3c1f", "planted-argument-8f8f"


@pytest.fixture
def session_folder() -> Iterator[Path]:
    """A folder for Ray's sessions, with a path short enough for its sockets."""
    with tempfile.TemporaryDirectory(prefix="s-", dir="/tmp") as folder:
        yield Path(folder)


def test_no_secret_is_written_anywhere(
    tmp_path: Path, object_store: ObjectStore, bucket: str, session_folder: Path
) -> None:
    home, pages = tmp_path / "home", tmp_path / "pages"
    plant_in_home(home)
    pages.mkdir()
    make_dataset(tmp_path / "data", 40)
    for name in storage.list_sizes(str(tmp_path / "data")):
        storage.copy(str(tmp_path / "data" / name), storage.join(bucket, "data", name))
    scenes = write_scenes(tmp_path / "scenes", 4)
    environment = {
        **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        **object_store.environment,
        **PLANTED,
        "HOME": str(home),
        "RAY_TMPDIR": str(session_folder),
        "MLFLOW_TRACKING_USERNAME": "someone",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    server_folder = tmp_path / "server"
    server_folder.mkdir()
    printed: dict[str, bytes] = {}

    def groupvit(*arguments: str, code: int = 0) -> None:
        command = [sys.executable, "-m", "pipelines.cli", *arguments]
        done = subprocess.run(command, capture_output=True, env=environment, cwd=pages, check=False)
        printed[f"output of {arguments[0]} {len(printed)}"] = done.stdout + done.stderr
        assert done.returncode == code, (arguments, done.stdout[-2000:], done.stderr[-2000:])

    with MlflowServer(server_folder) as server:
        tracking = server.uri.replace("http://", f"http://someone:{PASSWORD_OF_URI}@")
        tiny = ["--training.global-batch-size", "8", "--ingest.slice-size", "8", "--optimizer.warmup-steps", "0"]
        groupvit(
            *("pretrain", "debug", "--data.sources", f"{bucket}/data", "--training.runs-folder", f"{bucket}/runs"),
            *(*tiny, "--training.num-steps", "2", "--tracking.uri", tracking),
            *(
                "--evaluation.every-n-steps",
                "1",
                "--evaluation.root",
                str(scenes),
                "--evaluation.registered-model",
                "m",
            ),
        )
        run = f"{bucket}/runs/debug"
        for name in ("one", "two"):
            groupvit("evaluate", "--checkpoint", run, "--root", str(scenes), "--out", f"{pages}/{name}")
        groupvit("compare", f"{pages}/one", f"{pages}/two", "--out", f"{pages}/compared", "--tracking-uri", tracking)
        groupvit("inspect", f"{bucket}/data", "--out", f"{pages}/inspected.html")
        groupvit("register", "--checkpoint", run, "--name", "again", "--tracking-uri", tracking)
        groupvit(
            *("sweep", "debug", "--base", "debug", "--num-steps", "2", "--num-seeds", "1", "--rung-every-n-steps", "2"),
            *("--name", "swept", "--data", f"{bucket}/data", "--training.runs-folder", f"{bucket}/runs", *tiny),
            *("--evaluation.root", str(scenes), "--tracking.uri", tracking),
        )
        # Mistakes are explained without them, too.
        away = f"http://someone:{PASSWORD_OF_URI}@127.0.0.1:9"
        groupvit("register", "--checkpoint", run, "--name", "x", "--tracking-uri", away, code=2)
        for uri in (
            f"s3://key:{IN_ARGUMENTS}@bucket/x",
            f"gs://key:{IN_ARGUMENTS}@bucket/x",
            f"s3://bucket/x?access_key=key&secret_key={IN_ARGUMENTS}&endpoint_override=127.0.0.1:9",
        ):
            groupvit("inspect", uri, code=2)

    contents = printed | files_below(server_folder) | files_below(pages) | files_below(session_folder)
    contents |= {name: content for name, content in files_below(home).items() if "/.aws/" not in name}
    contents |= {name: storage.read_bytes(f"{bucket}/runs/{name}") for name in storage.list_sizes(f"{bucket}/runs")}
    secrets = [PASSWORD_OF_URI, IN_ARGUMENTS, object_store.environment["AWS_SECRET_ACCESS_KEY"]]
    assert found([*secrets, *PLANTED.values(), *IN_FILES.values()], contents) == []
    names = ("run.json", "mlflow.db", "spool.jsonl", "inspected.html", "gcs_server", "state.json", "metrics.json")
    for name in (*names, "report/leaderboard.md"):
        assert any(name in place for place in contents), f"{name} was not looked at"
