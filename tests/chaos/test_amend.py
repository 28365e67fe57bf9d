"""A run that is amended while drivers are killed gives the same bits as one that nothing disturbed."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest

from pipelines.experiments.config import ExperimentConfig
from pipelines.training.pretrain import pretrain
from tests.support.small_run import (
    as_flags,
    assert_same_result,
    consumed,
    last_recorded_step,
    make_config,
    wait_for_step,
    write_noise,
)

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(900)]

NUM_CPUS = 5
AMENDMENTS = ("from 18: data.weights=3,1", "from 18: optimizer.learning_rate=0.002", "skip 20:22")
"""The order of samples changes at position 288, where window 9 begins."""


def test_an_amended_run_that_is_killed(tmp_path: Path, cluster: None) -> None:
    data = [write_noise(str(tmp_path / name)) for name in ("one", "two")]
    runs = tmp_path / "runs"

    def config_of(name: str) -> ExperimentConfig:
        config = make_config(data[0], runs, name, num_workers=2)
        return dataclasses.replace(config, data=dataclasses.replace(config.data, sources=tuple(data)))

    whole, killed = config_of("whole"), config_of("killed")
    pretrain(dataclasses.replace(whole, amendments=AMENDMENTS))

    command = [sys.executable, "-m", "pipelines.cli", "pretrain", "debug", *as_flags(killed)]
    amend = [word for text in AMENDMENTS for word in ("--amend", text)]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    for flags, num_steps in (([], 8), (amend, random.randint(13, 15))):  # the second one begins at step 7 or 14
        step = last_recorded_step(runs, "killed") + num_steps
        with (tmp_path / f"log-{step}").open("w") as log:
            driver = subprocess.Popen(
                [*command, *flags], env=environment, stdout=log, stderr=log, start_new_session=True
            )
        wait_for_step(runs, "killed", step, alive=lambda: driver.poll() is None)  # noqa: B023
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
        recorded_then = -1
        while recorded_then != (recorded_then := last_recorded_step(runs, "killed")):
            time.sleep(3)  # its workers live on for a moment
    refused = subprocess.run(
        [*command, "--amend", "from 3: optimizer.learning_rate=1"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert refused.returncode == 2
    assert "--amend 'from 3: optimizer.learning_rate=1' begins before the newest checkpoint" in refused.stderr
    pretrain(killed)
    assert consumed(runs, "killed") == consumed(runs, "whole")
    assert_same_result(runs / "killed", runs / "whole")

    recorded = json.loads((runs / "killed" / "run.json").read_text())["amendments"]
    assert [each["text"] for each in recorded] == list(AMENDMENTS)
    client = mlflow.MlflowClient(f"sqlite:///{runs}/mlflow.db")
    experiments = [each.experiment_id for each in client.search_experiments()]
    [found] = client.search_runs(experiments, "attributes.run_name = 'killed'")
    assert found.data.tags["amendments"].count(" (by ") == len(AMENDMENTS)
