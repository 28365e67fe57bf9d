"""Workers that are told to leave, and drivers that are told to stop: a checkpoint at once, and the same bits after."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipelines.runs.folder import RunFolder
from pipelines.training.pretrain import pretrain
from tests.support.processes import ray_processes
from tests.support.small_run import (
    NUM_STEPS,
    as_flags,
    assert_same_result,
    consumed,
    last_recorded_step,
    make_config,
    repeated_steps,
    wait_for_step,
)

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(900)]

NUM_CPUS = 5


def test_a_worker_that_gets_sigterm(
    data: str, runs: Path, undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "sigterm"
    step, victim = random.randint(9, NUM_STEPS - 10), random.randrange(2)

    def ask() -> None:
        wait_for_step(runs, name, step, alive=lambda: True)
        ray_processes()[victim].terminate()

    asking = threading.Thread(target=ask)
    asking.start()
    config = make_config(data, runs, name, num_workers=2, max_failures=0)  # it is not a failure
    pretrain(config)
    asking.join()
    shown = capsys.readouterr().out
    assert f"{name}: the workers left after step" in shown, (step, victim)
    assert repeated_steps(runs, name) == [], (step, victim)
    assert consumed(runs, name) == consumed(runs, "undisturbed")
    assert_same_result(runs / name, undisturbed)


def test_a_controller_that_is_killed(data: str, runs: Path, undisturbed: Path) -> None:
    """Ray Train's process that starts the workers and watches them."""
    name = "controller"
    step = random.randint(9, NUM_STEPS - 10)

    def kill() -> None:
        wait_for_step(runs, name, step, alive=lambda: True)
        ray_processes("TrainController")[0].kill()

    killing = threading.Thread(target=kill)
    killing.start()
    pretrain(make_config(data, runs, name, num_workers=2, max_failures=0))
    killing.join()
    assert consumed(runs, name) == consumed(runs, "undisturbed"), step
    assert_same_result(runs / name, undisturbed)


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_driver_that_is_told_to_stop(
    data: str, runs: Path, undisturbed: Path, number: signal.Signals, exit_code: int
) -> None:
    name = f"stopped-by-{number.name}"
    command = [sys.executable, "-m", "pipelines.cli", "pretrain", "debug", "--json"]
    command += as_flags(make_config(data, runs, name, num_workers=2))
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    driver = subprocess.Popen(command, env=environment, start_new_session=True, **pipes)
    wait_for_step(runs, name, random.randint(9, NUM_STEPS - 10), alive=lambda: driver.poll() is None)
    # A terminal sends Ctrl-C to all processes of the command, a job server SIGTERM to the command's own.
    os.killpg(driver.pid, number) if number == signal.SIGINT else driver.send_signal(number)
    _, said = driver.communicate(timeout=300)
    step = last_recorded_step(runs, name)
    assert driver.returncode == exit_code, said
    assert said.splitlines()[-1].startswith(
        f"groupvit: {name}: stopped after step {step}, with a checkpoint; to go on: groupvit pretrain debug "
    )
    assert RunFolder(str(runs / name)).latest_step() == step

    again = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout.splitlines()[-1])["resumed_from_step"] == step
    assert repeated_steps(runs, name) == []
    assert consumed(runs, name) == consumed(runs, "undisturbed")
    assert_same_result(runs / name, undisturbed)


def test_a_second_ctrl_c_ends_at_once(data: str, runs: Path) -> None:
    """While no step ends, because the workers are stopped."""
    name = "twice"
    command = [sys.executable, "-m", "pipelines.cli", "pretrain", "debug"]
    command += as_flags(make_config(data, runs, name, num_workers=2))
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    driver = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    wait_for_step(runs, name, 9, alive=lambda: driver.poll() is None)
    for process in ray_processes(below=driver.pid):
        process.suspend()
    assert driver.stderr is not None
    driver.send_signal(signal.SIGINT)
    assert driver.stderr.readline() == "stopping after this step, with a checkpoint; once more stops at once\n"
    driver.send_signal(signal.SIGINT)
    _, said = driver.communicate(timeout=60)
    assert (driver.returncode, said.splitlines()[-1]) == (-signal.SIGINT, "groupvit: stopped by Ctrl-C")


def test_a_worker_that_hangs(data: str, runs: Path, undisturbed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is suspended. The others say where they wait, and all start again."""
    name = "hangs"

    def suspend() -> None:
        wait_for_step(runs, name, 9, alive=lambda: True)
        ray_processes()[0].suspend()

    suspending = threading.Thread(target=suspend)
    suspending.start()
    pretrain(make_config(data, runs, name, num_workers=2, hang_timeout=10.0, max_failures=1))
    suspending.join()
    shown = capsys.readouterr().out
    assert re.search(
        r"^rank \d: a step takes longer than training.hang_timeout=10 s; it is in \w+ \(\w+.py:\d+\)", shown, re.M
    )
    assert f"{name}: training from step 7" in shown
    assert_same_result(runs / name, undisturbed)
