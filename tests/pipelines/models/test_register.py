"""`groupvit register`: a checkpoint put into MLflow by hand."""

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from groupvit.checkpoint_files import MODEL_FILE, STATE_FILE, read_state
from pipelines.cli.main import main
from pipelines.models.register import WEIGHTS_TAG
from tests.support.edited_checkpoint import edit_state
from tests.support.mlflow_server import MlflowServer
from tests.support.new_run import new_run
from tests.support.running_app import NOTICE

pytestmark = pytest.mark.timeout(600)  # the server needs seconds to start, or minutes on a machine that is busy


def test_command_registers_a_run_folder_by_hand_once(
    server: MlflowServer, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder = tmp_path / "demo"
    (run_folder / "checkpoints").mkdir(parents=True)
    (run_folder / "checkpoints" / checkpoint.name).symlink_to(checkpoint)
    arguments = ["register", "--checkpoint", str(run_folder), "--name", "by hand", "--tracking-uri", server.uri]
    results = []
    for _ in range(2):
        assert main([*arguments, "--json"]) == 0
        results.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert results[0] == results[1]
    assert results[0] | {"mlflow_run": ""} == {
        "model": "models:/by hand/1",
        "name": "by hand",
        "version": "1",
        "alias": "best",
        "step": 7,
        "mlflow_run": "",
        "tracking_uri": server.uri,
        "license": NOTICE,
    }
    run = MlflowClient(server.uri).get_run(results[0]["mlflow_run"])
    assert run.info.status == "FINISHED"
    assert len(run.data.tags[WEIGHTS_TAG]) == 64


def test_command_registers_under_a_run_that_goes_on(
    server: MlflowServer, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = new_run(server.uri)
    arguments = ["--checkpoint", str(checkpoint), "--name", "of a run", "--alias", "None", "--mlflow-run", run_id]
    assert main(["register", *arguments, "--tracking-uri", server.uri]) == 0
    assert capsys.readouterr().out.splitlines() == ["models:/of a run/1", f"licence of the weights: {NOTICE}"]
    client = MlflowClient(server.uri)
    assert client.get_run(run_id).info.status == "RUNNING"
    assert client.get_registered_model("of a run").aliases == {}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"--tracking-uri": None}, "tracking_uri is not given and MLFLOW_TRACKING_URI is not set"),
        ({"--checkpoint": "nowhere"}, "nowhere is neither a checkpoint nor a run with one"),
        ({"--name": "a/b"}, "a/b"),
        ({"--alias": "v1"}, "v1"),
        ({"--mlflow-run": "0" * 32}, "0" * 32),
    ],
)
def test_command_tells_what_to_mend(
    checkpoint: Path,
    tmp_path: Path,
    changed: dict[str, str | None],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    flags: dict[str, str | None] = {
        "--checkpoint": str(checkpoint),
        "--name": "x",
        "--tracking-uri": f"sqlite:///{tmp_path}/mlflow.db",
    }
    flags |= changed
    given = [part for flag, value in flags.items() if value is not None for part in (flag, value)]
    assert main(["register", *given]) == 2
    shown = capsys.readouterr().err.strip().splitlines()[-1]
    assert shown.startswith("groupvit: error: ")
    assert message in shown


def test_command_says_how_a_deleted_experiment_is_restored(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(uri)
    client.delete_experiment(client.create_experiment("groupvit"))
    assert main(["register", "--checkpoint", str(checkpoint), "--name", "x", "--tracking-uri", uri]) == 2
    shown = capsys.readouterr().err.strip().splitlines()[-1]
    assert "experiment 1 was deleted: " in shown and "mlflow experiments restore --experiment-id 1`" in shown


def test_command_leaves_a_failed_run_of_a_corrupted_checkpoint_and_then_succeeds(
    checkpoint: Path, tmp_path: Path
) -> None:
    whole = (checkpoint / MODEL_FILE).read_bytes()
    state = (checkpoint / STATE_FILE).read_text()
    folder, uri = tmp_path / "copy", f"sqlite:///{tmp_path}/mlflow.db"
    folder.mkdir()
    (folder / MODEL_FILE).write_bytes(whole)
    (folder / STATE_FILE).write_text(state)
    edit_state(folder, model=json.loads(json.dumps(read_state(folder)["model"]).replace('"width": 32', '"width": 64')))
    arguments = ["register", "--checkpoint", str(folder), "--name", "x", "--tracking-uri", uri]
    client = MlflowClient(uri)
    for exit_code, status in ((2, "FAILED"), (0, "FINISHED")):
        assert main(arguments) == exit_code
        experiment = client.get_experiment_by_name("groupvit")
        assert experiment is not None
        assert experiment.artifact_location == f"{tmp_path}/mlflow-artifacts"
        [run] = client.search_runs([experiment.experiment_id])
        assert run.info.status == status
        (folder / STATE_FILE).write_text(state)
