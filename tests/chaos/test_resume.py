"""Runs that lose a worker or the driver to kill -9, and continue: what comes out must not differ by a bit."""

import json
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipelines.runs.folder import RunFolder
from pipelines.training.pretrain import pretrain
from tests.support.processes import ray_processes
from tests.support.small_run import (
    NUM_STEPS,
    as_flags,
    assert_every_epoch_saw_every_sample_once,
    assert_same_result,
    consumed,
    last_recorded_step,
    make_config,
    wait_for_step,
)

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]

NUM_CPUS = 5


def assert_one_run_with_each_step_once(runs: Path, name: str) -> None:
    client = MlflowClient(f"sqlite:///{runs}/mlflow.db")
    experiment = client.get_experiment_by_name("chaos")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{name}'")
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [metric.step for metric in history] == list(range(1, NUM_STEPS + 1))
    assert run.info.status == "FINISHED"


def test_every_epoch_sees_every_sample_once(runs: Path, undisturbed: Path) -> None:
    assert_every_epoch_saw_every_sample_once(runs, "undisturbed")


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 3])
def test_the_number_of_workers_does_not_change_the_result(
    data: str, runs: Path, undisturbed: Path, num_workers: int
) -> None:
    name = f"workers-{num_workers}"
    pretrain(make_config(data, runs, name, num_workers=num_workers))
    assert consumed(runs, name) == consumed(runs, "undisturbed")
    assert_same_result(runs / name, undisturbed)


@pytest.mark.slow
def test_killed_worker(data: str, runs: Path, undisturbed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "killed-worker"
    step, victim = random.randint(9, NUM_STEPS - 8), random.randrange(2)
    killed: list[int] = []

    def kill() -> None:
        wait_for_step(runs, name, step, alive=lambda: True)
        ray_processes()[victim].kill()
        killed.append(last_recorded_step(runs, name))

    killer = threading.Thread(target=kill)
    killer.start()
    pretrain(make_config(data, runs, name, num_workers=2))
    killer.join()
    shown = capsys.readouterr().out
    assert killed, (step, victim)
    assert f"{name}: training from step" in shown, (step, victim, killed)
    assert consumed(runs, name) == consumed(runs, "undisturbed")
    assert_same_result(runs / name, undisturbed)
    assert_one_run_with_each_step_once(runs, name)


def test_damaged_checkpoint(data: str, runs: Path, undisturbed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The newest checkpoint is damaged while the workers are restarted: they go on from the one before."""
    name = "damaged-checkpoint"
    run = RunFolder(f"{runs}/{name}")
    damaged: list[int] = []

    def kill() -> None:
        wait_for_step(runs, name, 22, alive=lambda: True)
        for worker in ray_processes():
            worker.kill()
        damaged.append(run.latest_step())
        file = Path(run.checkpoint_uri(damaged[0])) / "optimizer.pt"
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)

    killer = threading.Thread(target=kill)
    killer.start()
    pretrain(make_config(data, runs, name, num_workers=2))
    killer.join()
    shown = capsys.readouterr().out
    assert damaged[0] >= 14
    assert f"step-{damaged[0]:08d}/optimizer.pt is corrupted (its sha256 is not that in state.json): moved" in shown
    assert f"{name}: training from step {damaged[0] - 7} on" in shown
    assert consumed(runs, name) == consumed(runs, "undisturbed")
    assert_same_result(runs / name, undisturbed)
    assert_one_run_with_each_step_once(runs, name)


def test_killed_driver(data: str, runs: Path, undisturbed: Path, tmp_path: Path) -> None:
    name = "killed-driver"
    step = random.randint(9, NUM_STEPS - 8)
    command = [sys.executable, "-m", "pipelines.cli", "pretrain", "debug", "--json"]
    command += as_flags(make_config(data, runs, name, num_workers=2))
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    with (tmp_path / "first.log").open("wb") as log:
        driver = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        wait_for_step(runs, name, step, alive=lambda: driver.poll() is None)
        driver.kill()
        driver.wait()

    again = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert again.returncode == 0, again.stderr
    summary = json.loads(again.stdout.splitlines()[-1])
    assert summary["resumed_from_step"] >= 7, (step, summary)
    assert consumed(runs, name) == consumed(runs, "undisturbed")
    assert_same_result(runs / name, undisturbed)
    assert_one_run_with_each_step_once(runs, name)
