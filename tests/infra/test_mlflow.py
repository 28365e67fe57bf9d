"""The MLflow server: reachable from where it should be, and no secret in its files."""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import mlflow
import pytest
import sqlalchemy
import yaml

from pipelines import storage

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "infra/mlflow"


@pytest.fixture
def services() -> dict[str, Any]:
    return yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]


@pytest.fixture
def container() -> dict[str, Any]:
    deployment = yaml.safe_load((FOLDER / "kubernetes/deployment.yaml").read_text())
    return deployment["spec"]["template"]["spec"]["containers"][0]


def test_listens_on_the_loopback_address_unless_told(services):
    assert services["mlflow"]["ports"] == ["${MLFLOW_BIND:-127.0.0.1}:5000:5000"]
    assert "ports" not in services["postgres"]
    assert services["postgres"]["networks"] == ["database"]
    assert "--host 127.0.0.1" in (FOLDER / "serve").read_text()


def test_credentials_come_from_the_environment(services):
    for service in services.values():
        for name, value in service["environment"].items():
            if re.search("PASSWORD|SECRET|KEY|TOKEN", name):
                assert value is None or re.fullmatch(r"\$\{\w+:\?.+\}", value), name
    assert "@" not in re.sub(r"//mlflow@", "//", services["mlflow"]["environment"]["MLFLOW_BACKEND_STORE_URI"])


def test_images_have_versions(services):
    assert re.fullmatch(r"postgres:\d+\.\d+-\w+", services["postgres"]["image"])
    hadolint = Path(sys.executable).with_name("hadolint")
    assert subprocess.run([hadolint, FOLDER / "Dockerfile"], check=False).returncode == 0
    pinned = (ROOT / "constraints.txt").read_text().splitlines()
    dockerfile = (FOLDER / "Dockerfile").read_text()
    for name in ("mlflow", "boto3"):
        assert re.findall(rf"'({name}==[\d.]+)'", dockerfile) == [
            line for line in pinned if line.startswith(f"{name}==")
        ]


def test_the_database_is_spoken_to_by_the_driver_that_is_installed(services):
    uri = sqlalchemy.make_url(services["mlflow"]["environment"]["MLFLOW_BACKEND_STORE_URI"])
    assert uri.drivername == "postgresql+psycopg2"  # without a driver's name, SQLAlchemy wants one we do not install
    assert uri.password is None
    assert "'psycopg2-binary==" in (FOLDER / "Dockerfile").read_text()
    assert "postgresql+psycopg2://" in (FOLDER / "kubernetes/deployment.yaml").read_text()


def command() -> list[str]:
    """What the image runs."""
    (entry,) = re.findall(r"^ENTRYPOINT (.+)$", (FOLDER / "Dockerfile").read_text(), re.MULTILINE)
    return yaml.safe_load(entry)


def status(port: int, path: str, host: str) -> int:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"Host": host})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.slow
def test_keeps_artifacts_in_the_bucket_and_answers_those_who_call_it_by_its_name(tmp_path, container, bucket):
    """The image's command with the deployment's environment, but for the database, which is SQLite here."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    values = {variable["name"]: variable.get("value") for variable in container["env"]}
    hosts = values["MLFLOW_SERVER_ALLOWED_HOSTS"]
    words = [str(port) if word == "5000" else word for word in command()]
    words[words.index("0.0.0.0")] = "127.0.0.1"
    words[0] = str(Path(sys.executable).with_name("mlflow"))
    environment = {
        **os.environ,
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "MLFLOW_ARTIFACTS_DESTINATION": f"{bucket}/mlflow",
        "MLFLOW_SERVER_ALLOWED_HOSTS": hosts,
    }
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(words, env=environment, cwd=tmp_path, stdout=log, stderr=log)
    try:
        for _ in range(400):
            assert server.poll() is None, (tmp_path / "log").read_text()[-2000:]
            try:
                if status(port, container["readinessProbe"]["httpGet"]["path"], "10.0.0.7:5000") == 200:
                    break
            except OSError:
                pass
            time.sleep(0.5)
        search = "/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default"
        assert status(port, search, "mlflow.groupvit.svc:5000") == 200  # as common/kustomization.yaml has it
        assert status(port, search, f"127.0.0.1:{port}") == 200
        assert status(port, search, "elsewhere.example") == 403
        client = mlflow.MlflowClient(f"http://127.0.0.1:{port}")
        run_id = client.create_run("0").info.run_id
        client.log_text(run_id, "hello", "greeting.txt")
        assert storage.read_bytes(f"{bucket}/mlflow/0/{run_id}/artifacts/greeting.txt") == b"hello"
    finally:
        server.terminate()
        server.wait(timeout=60)
