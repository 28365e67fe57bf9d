"""A sweep that loses a node, and then its driver, to kill -9: the same command completes it, and nothing is done
twice."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from ray.cluster_utils import Cluster

from pipelines.runs.evaluations import read_record
from pipelines.runs.folder import RunFolder
from tests.support.scenes_folder import write_scenes
from tests.support.small_run import write_noise

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(2400)]  # minutes each on a machine that is busy

NUM_STEPS, RUNG = 60, 20
CPUS = 6  # two trials of a worker, a task and an evaluation


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head on which nothing of a trial runs but its driver, and a node."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


def wait_for(what: str, seen: Callable[[], bool], driver: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 900
    while not seen():
        assert driver.poll() is None, f"the sweep ended before {what}: {log.read_text()[-2000:]}"
        assert time.monotonic() < deadline, f"{what} did not come: {log.read_text()[-2000:]}"
        time.sleep(0.1)


def test_a_sweep_survives_its_node_and_its_driver(cluster: Cluster, tmp_path: Path) -> None:
    data, scenes = write_noise(str(tmp_path / "train")), write_scenes(tmp_path / "scenes", 8)
    command = [
        *(sys.executable, "-m", "pipelines.cli", "sweep", "debug", "--base", "debug", "--max-concurrent", "2"),
        *("--data", data, "--evaluation.root", str(scenes), "--evaluation.num-pictures", "0"),
        *("--training.runs-folder", str(tmp_path), "--name", "chaos", "--tracking.experiment", "chaos"),
        *("--num-steps", str(NUM_STEPS), "--rung-every-n-steps", str(RUNG)),
        *("--training.checkpoint-every-n-steps", "10"),
        *("--ingest.slice-size", "16", "--training.global-batch-size", "16"),
        *("--tracking.system-metrics-every-n-seconds", "None", "--json"),
    ]
    environment = os.environ | {"RAY_ADDRESS": str(cluster.address)}
    folder, log = tmp_path / "chaos", tmp_path / "first.log"

    def num_checkpoints() -> int:
        return len(list(folder.glob("*/checkpoints/step-*/state.json")))

    def num_scores() -> int:
        return sum(len(read_record(RunFolder(str(run.parent))).scores) for run in folder.glob("*/evaluations.json"))

    node = cluster.add_node(num_cpus=CPUS)
    with log.open("wb") as output:
        driver = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            wait_for("the first checkpoint", lambda: num_checkpoints() > 0, driver, log)
            cluster.add_node(num_cpus=CPUS)
            cluster.remove_node(node, allow_graceful=False)  # kill -9, and its workers with it
            before = num_scores()
            wait_for("a rung after the node was lost", lambda: num_scores() > before + 1, driver, log)
        finally:
            driver.kill()
            driver.wait()
    scores = {run.parent.name: read_record(RunFolder(str(run.parent))).scores for run in folder.glob("*/run.json")}

    again = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=1500)
    assert again.returncode == 0, again.stderr[-2000:]
    summary = json.loads(again.stdout.splitlines()[-1])
    assert summary["counts"] == {"finished": 4, "stopped": 0, "failed": 0}

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("chaos")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    [parent] = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = {str(run.info.run_name): run for run in runs if run is not parent}
    assert parent.info.run_id == summary["mlflow_run_id"] and len(children) == 4
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parent.info.run_id}
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert sorted(children) == sorted(path.parent.name for path in folder.glob("*/run.json"))
    for name, run in children.items():
        losses = client.get_metric_history(run.info.run_id, "train/loss")
        assert [metric.step for metric in losses] == list(range(1, NUM_STEPS + 1)), "every step once"
        record = read_record(RunFolder(str(folder / name)))
        assert sorted(record.scores) == [20, 40, 60]
        logged = {
            (metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, "evaluation/miou")
        }
        assert logged == set(record.scores.items())
        assert all(record.scores[step] == score for step, score in scores.get(name, {}).items()), "not scored again"
