"""Tracking against a real MLflow server on SQLite, also while it is killed and started again."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipelines.tracking.runs import JOB_TAG, RunIdentity, TrackedDataset, find_run, make_run
from pipelines.tracking.tracker import Tracker, metrics_record
from tests.support.mlflow_server import MlflowServer

pytestmark = pytest.mark.timeout(600)  # the server needs seconds to start, or minutes on a machine that is busy


def identity(uri: str, job_id: str, **changes: object) -> RunIdentity:
    values = {"uri": uri, "experiment": "tests", "run_name": "run", "job_id": job_id, **changes}
    return RunIdentity(**values)  # type: ignore[arg-type]


def history(uri: str, job_id: str, key: str) -> list[tuple[int, float]]:
    client = MlflowClient(uri)
    run = find_run(client, "tests", job_id)
    return [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, key)]


def test_records_run_completely(server: MlflowServer, tmp_path: Path) -> None:
    tracker = Tracker(
        identity(
            server.uri,
            "complete",
            params={"training.num_steps": 3, "tracking.uri": "http://me:hunter2@host/"},
            tags={"mlflow.source.git.commit": "abc"},
            datasets=(TrackedDataset(name="shapes", uri="s3://k:hunter2@b/shapes", digest="d" * 64, num_samples=7),),
        ),
        tmp_path,
        system_metrics_every_n_seconds=0.5,
    )
    for step in range(3):
        tracker.log_metrics({"train/loss": 1.0 / (step + 1)}, step, training=True)
    tracker.log_text(json.dumps({"uri": "http://me:hunter2@host"}), "config.json")
    time.sleep(2)
    assert tracker.close()

    client = MlflowClient(server.uri)
    run = client.get_run(tracker.run_id or "")
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "run"
    assert run.data.params == {"training.num_steps": "3", "tracking.uri": "http://***@host/"}
    assert run.data.tags["mlflow.source.git.commit"] == "abc"
    assert history(server.uri, "complete", "train/loss") == [(0, 1.0), (1, 0.5), (2, pytest.approx(1 / 3))]
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= set(run.data.metrics)
    assert run.inputs is not None
    dataset = run.inputs.dataset_inputs[0].dataset
    assert (dataset.name, dataset.digest, json.loads(dataset.profile or "")["num_samples"]) == ("shapes", "d" * 36, 7)
    config = Path(client.download_artifacts(run.info.run_id, "config.json", str(tmp_path))).read_text()
    spool = (tmp_path / "spool.jsonl").read_text()
    assert "hunter2" not in config + spool + str(run.to_dictionary())


def test_replays_in_order_what_was_logged_while_server_was_away(server: MlflowServer, tmp_path: Path) -> None:
    tracker = Tracker(identity(server.uri, "outage"), tmp_path)
    tracker.log_metrics({"train/loss": 0.0}, 0, training=True)
    slowest = 0.0
    try:
        for step in range(1, 40):
            if step == 10:
                server.kill()
            if step == 30:
                server.start()
            start = time.perf_counter()
            tracker.log_metrics({"train/loss": float(step)}, step, training=True)
            slowest = max(slowest, time.perf_counter() - start)
            time.sleep(0.05)
    finally:
        if server._process is None:
            server.start()
    assert tracker.close(timeout=60)
    assert slowest < 1  # it does not wait for the server
    assert history(server.uri, "outage", "train/loss") == [(step, float(step)) for step in range(40)]


def test_restarted_job_continues_its_run_and_shows_each_step_once(server: MlflowServer, tmp_path: Path) -> None:
    first = Tracker(identity(server.uri, "restart", params={"a": 1}), tmp_path / "first")
    for step in range(6):
        first.log_metrics({"train/loss": float(step)}, step, training=True)
    assert first.close("FAILED")
    # The checkpoint was at step 3, and the second process runs on another machine: it has no spool.
    second = Tracker(identity(server.uri, "restart", params={"a": 2, "b": 3}), tmp_path / "second")
    for step in range(3, 9):
        second.log_metrics({"train/loss": float(step)}, step, training=True)
    assert second.close()

    assert second.run_id == first.run_id
    run = MlflowClient(server.uri).get_run(second.run_id or "")
    assert run.info.status == "FINISHED"
    assert run.data.params == {"a": "1", "b": "3"}
    assert history(server.uri, "restart", "train/loss") == [(step, float(step)) for step in range(9)]


def test_an_evaluation_beside_it_does_not_hide_how_far_the_training_was(server: MlflowServer, tmp_path: Path) -> None:
    training = Tracker(identity(server.uri, "evaluated"), tmp_path / "training")
    while training.run_id is None:
        time.sleep(0.1)
    evaluation = Tracker(identity(server.uri, "evaluated", makes_run=False), tmp_path / "evaluation")
    while evaluation.run_id is None:  # it has seen the run before the first step
        time.sleep(0.1)
    for step in range(3):
        training.log_metrics({"train/loss": float(step)}, step, training=True)
    assert training.close(None)
    evaluation.log_metrics({"evaluation/miou": 50.0}, 2)
    assert evaluation.close(None)

    again = Tracker(identity(server.uri, "evaluated"), tmp_path / "training")
    for step in range(1, 4):
        again.log_metrics({"train/loss": float(step)}, step, training=True)
    assert again.close()
    assert [step for step, _ in history(server.uri, "evaluated", "train/loss")] == [0, 1, 2, 3]


def test_next_process_sends_what_a_killed_one_left(server: MlflowServer, tmp_path: Path) -> None:
    script = (
        "import sys, time, pathlib\n"
        "from pipelines.tracking.runs import RunIdentity\n"
        "from pipelines.tracking.tracker import Tracker\n"
        "identity = RunIdentity(uri='http://127.0.0.1:9', experiment='tests', run_name='run', job_id='killed')\n"
        "tracker = Tracker(identity, pathlib.Path(sys.argv[1]))\n"
        "[tracker.log_metrics({'train/loss': float(step)}, step, training=True) for step in range(5)]\n"
        "print('logged', flush=True)\n"
        "time.sleep(200)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"logged\n"
    spool = tmp_path / "spool.jsonl"
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and (not spool.exists() or spool.read_bytes().count(b"\n") < 5):
        time.sleep(0.05)
    process.kill()
    process.wait()
    with spool.open("a") as file:
        file.write('{"metrics": {"train/lo')  # as a kill in the middle of a write leaves it

    tracker = Tracker(identity(server.uri, "killed"), tmp_path)
    tracker.log_metrics({"train/loss": 5.0}, 5, training=True)
    assert tracker.close()
    assert history(server.uri, "killed", "train/loss") == [(step, float(step)) for step in range(6)]


def test_what_a_lost_machine_had_not_sent_is_sent_by_the_next(server: MlflowServer, tmp_path: Path) -> None:
    first = Tracker(identity("http://127.0.0.1:9", "lost"), tmp_path / "first")
    for step in range(6):
        first.log_metrics({"train/loss": float(step)}, step, training=True)
    first.log_metrics({"evaluation/miou": 50.0}, 5)
    kept = first.unsent_training_metrics()[:4]  # the checkpoint was at step 3
    assert [record["step"] for record in kept] == [0, 1, 2, 3]
    first.close(None, timeout=0.1)

    again = Tracker(identity("http://127.0.0.1:9", "lost"), tmp_path / "first")  # on the machine, what waits is known
    again.log_records(kept)
    again.log_metrics({"train/loss": 4.0}, 4, training=True)
    assert [record["step"] for record in again.unsent_training_metrics()] == list(range(6))
    again.close(None, timeout=0.1)

    second = Tracker(identity(server.uri, "lost"), tmp_path / "second")  # the first machine is gone
    second.log_records(kept)
    for step in range(4, 8):
        second.log_metrics({"train/loss": float(step)}, step, training=True)
    assert second.close(None)
    assert second.unsent_training_metrics() == []
    third = Tracker(identity(server.uri, "lost"), tmp_path / "third")  # from the same checkpoint, with more than needed
    third.log_records(kept)
    assert third.close()
    assert history(server.uri, "lost", "train/loss") == [(step, float(step)) for step in range(8)]


def test_an_evaluation_that_is_sent_twice_is_there_once(server: MlflowServer, tmp_path: Path) -> None:
    record = metrics_record({"evaluation/miou": 50.0}, 4)
    for folder in ("first", "second"):
        tracker = Tracker(identity(server.uri, "twice"), tmp_path / folder)
        tracker.log_records([record])
        assert tracker.close()
    assert history(server.uri, "twice", "evaluation/miou") == [(4, 50.0)]


def test_never_raises_when_nothing_answers(tmp_path: Path) -> None:
    tracker = Tracker(identity("http://127.0.0.1:9", "nobody"), tmp_path)
    tracker.log_metrics({"train/loss": 1.0}, 0)
    start = time.monotonic()
    assert not tracker.close(timeout=2.0)
    assert time.monotonic() - start < 60
    assert tracker.run_id is None
    assert (tmp_path / "spool.jsonl").read_bytes().count(b"\n") == 2


def test_a_deleted_experiment_is_refused_before_there_is_anything_to_record(server: MlflowServer) -> None:
    client = MlflowClient(server.uri)
    number = client.create_experiment("deleted")
    client.delete_experiment(number)
    message = rf"^tracking.uri={server.uri}: experiment {number} was deleted: .* restore --experiment-id {number}` .*"
    with pytest.raises(ValueError, match=message):
        make_run(identity(server.uri, "refused", experiment="deleted"))


def test_a_run_that_is_made_early_is_the_one_that_is_written_to(server: MlflowServer, tmp_path: Path) -> None:
    make_run(identity(server.uri, "early", params={"a": 1}))
    run = find_run(MlflowClient(server.uri), "tests", "early")
    assert (run.info.status, run.data.params) == ("RUNNING", {"a": "1"})
    tracker = Tracker(identity(server.uri, "early", params={"a": 1}), tmp_path)
    assert tracker.close()
    assert tracker.run_id == run.info.run_id


def test_a_new_database_is_made_without_a_word(tmp_path: Path) -> None:
    code = (
        "from pipelines.tracking.runs import RunIdentity, is_reached\n"
        f"identity = RunIdentity(uri='sqlite:///{tmp_path}/mlflow.db', experiment='x', run_name='x', job_id='x')\n"
        "print(is_reached(identity))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_a_server_that_is_away_does_not_refuse() -> None:
    make_run(identity("http://127.0.0.1:9", "nobody"))


def test_a_refusal_on_the_way_is_said_and_loses_nothing(
    server: MlflowServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client = MlflowClient(server.uri)
    number = client.create_experiment("for a while")
    who = identity(server.uri, "refused-later", experiment="for a while")
    tracker = Tracker(who, tmp_path)
    while tracker.run_id is None:
        time.sleep(0.1)
    client.delete_experiment(number)
    for step in range(3):
        tracker.log_metrics({"train/loss": float(step)}, step, training=True)
    start = time.monotonic()
    assert not tracker.close(timeout=60)
    assert time.monotonic() - start < 30  # it does not wait for a server that has answered
    assert f"run {tracker.run_id} was deleted: `MLFLOW_TRACKING_URI={server.uri} mlflow runs restore" in caplog.text
    assert "will be tried again" not in caplog.text
    assert "was not reached" not in caplog.text

    client.restore_experiment(number)
    again = Tracker(who, tmp_path)
    assert again.close()
    assert again.run_id == tracker.run_id
    found = client.get_metric_history(again.run_id or "", "train/loss")
    assert [(metric.step, metric.value) for metric in found] == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert client.get_run(again.run_id or "").info.status == "FINISHED"


def test_one_run_per_job_on_sqlite(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for folder, value in (("a", 1.0), ("b", 2.0)):
        tracker = Tracker(identity(uri, "job", artifact_location=str(tmp_path / "artifacts")), tmp_path / folder)
        tracker.log_metrics({"x": value}, 0)
        tracker.log_artifact(tmp_path / "a" / "spool.jsonl", "spools")
        assert tracker.close(timeout=90)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.tags[JOB_TAG] == "job"
    assert [value for _, value in sorted(history(uri, "job", "x"))] == [1.0, 2.0]
    assert [item.path for item in client.list_artifacts(run.info.run_id, "spools")] == ["spools/spool.jsonl"]
