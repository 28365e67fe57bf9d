"""Secrets in every place where a credential can stand are in nothing that commands write, log, print or record."""

import base64
import os
import subprocess
import sys
import tempfile
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import storage
from tests.support.dataset_folder import make_dataset
from tests.support.mlflow_server import MlflowServer
from tests.support.object_store import ObjectStore
from tests.support.scenes_folder import write_scenes

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(1500)]

PASSWORD_OF_URI, PASSWORD_OF_VARIABLE = "planted-uri-3c1f", "planted-variable-77d0"
PLANTED = {
    "MLFLOW_TRACKING_PASSWORD": PASSWORD_OF_VARIABLE,
    "HF_TOKEN": "hf_planted9a8b7c6d",
    "HUGGING_FACE_HUB_TOKEN": "hf_planted1a2b3c4d",
    "AWS_SECRET_KEY_OF_ANOTHER": "planted-other-5e5e",
}
"""Secrets in the environment, beside the keys of the object store."""
IN_FILES = {"credentials": "planted-credentials-file-1212", "config": "planted-config-file-3434"}
"""Secrets in ~/.aws."""
IN_ARGUMENTS = "planted-argument-8f8f"


@pytest.fixture
def session_folder() -> Iterator[Path]:
    """A folder for Ray's sessions, with a path short enough for its sockets."""
    with tempfile.TemporaryDirectory(prefix="s-", dir="/tmp") as folder:
        yield Path(folder)


def encodings(secret: str) -> set[bytes]:
    return {secret.encode(), urllib.parse.quote(secret, safe="").encode(), base64.b64encode(secret.encode())}


def found(secrets: list[str], contents: dict[str, bytes]) -> list[tuple[str, str]]:
    return [
        (secret, name)
        for name, content in contents.items()
        for secret in secrets
        if any(written in content for written in encodings(secret))
    ]


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()}


def test_no_secret_is_written_anywhere(
    tmp_path: Path, object_store: ObjectStore, bucket: str, session_folder: Path
) -> None:
    home, pages = tmp_path / "home", tmp_path / "pages"
    (home / ".aws").mkdir(parents=True)
    pages.mkdir()
    for name, secret in IN_FILES.items():
        (home / ".aws" / name).write_text(f"[default]\naws_secret_access_key = {secret}\naws_access_key_id = other\n")
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
        small = ["--training.num-steps", "2", "--training.global-batch-size", "8", "--ingest.slice-size", "8"]
        groupvit(
            *("pretrain", "debug", "--data.sources", f"{bucket}/data", "--training.runs-folder", f"{bucket}/runs"),
            *(*small, "--optimizer.warmup-steps", "0", "--tracking.uri", tracking),
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
    contents |= {name: storage.read_bytes(f"{run}/{name}") for name in storage.list_sizes(run)}
    secrets = [PASSWORD_OF_URI, IN_ARGUMENTS, object_store.environment["AWS_SECRET_ACCESS_KEY"]]
    assert found([*secrets, *PLANTED.values(), *IN_FILES.values()], contents) == []
    for name in ("run.json", "mlflow.db", "spool.jsonl", "inspected.html", "gcs_server", "state.json", "metrics.json"):
        assert any(name in place for place in contents), f"{name} was not looked at"
