"""The whole chain, small: data, pretraining, evaluation, baselines, and their summary."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipelines.cli.main import main
from tests.support.planted_secrets import PLANTED, files_below, found

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(900)]

KEYS = {
    *("seen_miou", "unseen_miou", "untrained_miou", "all_background_miou", "no_grouping_miou", "train_seconds"),
    *("images_per_second", "peak_rss_mb", "mlflow_run_id", "checkpoint", "pictures"),
}


@pytest.fixture
def session_folder() -> Iterator[Path]:
    """A folder for Ray's sessions, with a path short enough for its sockets."""
    with tempfile.TemporaryDirectory(prefix="s-", dir="/tmp") as folder:
        yield Path(folder)


def test_demo_goes_from_data_to_a_compared_result(
    tmp_path: Path, session_folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    secrets = PLANTED | {"AWS_SECRET_ACCESS_KEY": "planted-key-9a9a"}
    for name, secret in secrets.items():
        monkeypatch.setenv(name, secret)
    monkeypatch.setenv("RAY_TMPDIR", str(session_folder))
    small = ["--num-steps", "6", "--num-training-scenes", "400", "--num-evaluation-scenes", "8"]
    assert main(["demo", "--data", "shapes", "--out", str(out), *small, "--json"]) == 0
    printed = capfd.readouterr()
    summary = json.loads(printed.out.splitlines()[-1])
    assert summary.keys() >= KEYS
    assert summary["data"] == "shapes"
    assert all(0 <= summary[key] <= 100 for key in KEYS if key.endswith("_miou"))
    assert summary["peak_rss_mb"] > 500  # Ray, its workers and this process
    assert all(Path(picture).is_file() for picture in summary["pictures"])
    assert Path(summary["checkpoint"], "model.safetensors").is_file()
    run = MlflowClient(f"sqlite:///{out}/mlflow.db").get_run(summary["mlflow_run_id"])
    assert run.data.metrics["evaluation/seen/miou"] == pytest.approx(summary["seen_miou"], abs=0.01)
    assert "train/loss" in run.data.metrics
    contents = {"output": (printed.out + printed.err).encode()} | files_below(out) | files_below(session_folder)
    assert any("mlflow.db" in name for name in contents) and any("gcs_server" in name for name in contents)
    assert found(secrets.values(), contents) == []
