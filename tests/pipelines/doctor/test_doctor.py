"""`groupvit doctor` on real clusters: a healthy one, and one of three nodes with planted faults."""

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from mlflow import MlflowClient
from ray.cluster_utils import Cluster

from pipelines import storage
from pipelines.cli.main import main
from pipelines.doctor.services import EXPERIMENT
from tests.support.mlflow_server import MlflowServer
from tests.support.object_store import ObjectStore
from tests.support.small_disk import small_disk

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
PASSWORD = "pa55-of-mlflow"
SECONDS_AHEAD = 100


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that moves the clock of processes that load it."""
    library = tmp_path_factory.mktemp("clock") / "skewed_clock.so"
    source = Path(__file__).parents[2] / "support/skewed_clock.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


@pytest.fixture(scope="module")
def full_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system of 1 MB."""
    with small_disk(tmp_path_factory.mktemp("full") / "disk", "1m") as folder:
        yield folder


@pytest.fixture(scope="module")
def nodes(clock: Path, full_disk: Path, object_store: ObjectStore) -> Iterator[Cluster]:
    """A head that is well, a node whose clock is ahead, and one whose disk is full."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        for name, value in object_store.environment.items():
            patch.setenv(name, value)
        patch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        with pytest.MonkeyPatch.context() as of_node:  # Ray puts its own library in place of one in `env_vars`
            of_node.setenv("LD_PRELOAD", str(clock))
            of_node.setenv("SKEW_SECONDS", str(SECONDS_AHEAD))
            of_node.setenv("RAY_LD_PRELOAD_ON_WORKERS", "1")
            cluster.add_node(num_cpus=1)
        cluster.add_node(num_cpus=1, env_vars={"TMPDIR": str(full_disk)})
        yield cluster
        ray.shutdown()
        cluster.shutdown()


def found(capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, list[dict[str, str]]], str]:
    """The findings by check, and all that was printed."""
    captured = capsys.readouterr()
    summary = json.loads(captured.out.splitlines()[-1])
    by_check: dict[str, list[dict[str, str]]] = {}
    for finding in summary["findings"]:
        by_check.setdefault(finding["check"], []).append(finding)
    return by_check, captured.out + captured.err


def test_planted_faults_are_named_and_secrets_are_not(
    nodes: Cluster,
    bucket: str,
    object_store: ObjectStore,
    server: MlflowServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "")  # taken back after the test
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    tracking = server.uri.replace("://", "://someone:pa55-in-uri@")
    flags = ["--store", "s3://no-such-bucket/runs", "--tracking", tracking, "--probe-megabytes", "1"]
    assert main(["doctor", "--cluster", str(nodes.address), *flags, "--json"]) == 1
    by_check, printed = found(capsys)
    faults = {check: [one for one in rows if one["status"] == "fault"] for check, rows in by_check.items()}
    assert {check for check, rows in faults.items() if rows} == {"clock", "disk", "store"}, printed
    [clock_fault], [disk_fault] = faults["clock"], faults["disk"]
    assert clock_fault["text"].startswith(f"+{SECONDS_AHEAD - 1}.9") or f"+{SECONDS_AHEAD}.0" in clock_fault["text"]
    assert "chrony" in clock_fault["fix"]
    assert "/full" in disk_fault["text"] and "it is full: free some" in disk_fault["fix"]
    assert clock_fault["node"] != disk_fault["node"]
    assert len(faults["store"]) == 3 and all(
        "there is no bucket 'no-such-bucket'" in x["text"] for x in faults["store"]
    )
    assert [row["status"] for row in by_check["ports"]] == ["OK"] * 3
    assert "by gloo for each of 3 machines" in by_check["all-reduce"][0]["text"]
    assert by_check["versions"][0]["status"] == "OK" and f"ray {ray.__version__}" in by_check["versions"][0]["text"]
    assert "AWS_SECRET_ACCESS_KEY" in by_check["credentials"][0]["text"]
    keys = [value for name, value in object_store.environment.items() if "KEY" in name]
    assert len(keys) == 2
    for secret in (PASSWORD, "pa55-in-uri", *keys):
        assert secret not in printed


def test_a_healthy_cluster_has_no_fault_and_is_left_as_it_was(
    bucket: str,
    server: MlflowServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    flags = ["--store", bucket, "--tracking", server.uri, "--least-free-gigabytes", "0.1", "--json"]
    for _ in range(2):
        start = time.monotonic()
        assert main(["doctor", *flags]) == 0
        by_check, printed = found(capsys)
        assert time.monotonic() - start < 300
    assert "MB/s read" in by_check["store"][0]["text"], printed
    assert "took a run, and deleted it" in by_check["mlflow"][0]["text"]
    assert storage.list_files(bucket) == []
    client = MlflowClient(server.uri)
    assert client.get_experiment_by_name(EXPERIMENT).lifecycle_stage == "deleted"  # pyright: ignore
    assert EXPERIMENT not in {experiment.name for experiment in client.search_experiments()}


def test_what_does_not_answer_is_named_and_the_rest_is_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No cluster, a folder that is not there, a server that is away: each is one line."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    monkeypatch.setattr("pipelines.cluster.start._SECONDS_TO_ANSWER", 0.2)
    (tmp_path / "file").touch()
    flags = ["--store", f"{tmp_path}/file/below", "--tracking", "http://127.0.0.1:9", "--least-free-gigabytes", "0.1"]
    assert main(["doctor", *flags, "--json"]) == 1
    by_check, printed = found(capsys)
    assert [by_check[name][0]["status"] for name in ("ray", "store", "mlflow", "versions")] == [*["fault"] * 3, "OK"]
    assert "RAY_ADDRESS=127.0.0.1:9" in by_check["ray"][0]["text"]
    assert "Traceback" not in printed and printed.splitlines()[-1] == "groupvit: error: 3 faults: ray, store, mlflow"
