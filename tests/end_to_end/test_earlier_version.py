"""What an earlier version wrote is read and resumed: data sets, runs, checkpoints, sweeps.

The version is the last one whose modules lay side by side in `pipelines/`; data sets had one caption for each image. It
is taken from the repository's history and runs as a process of its own.
"""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipelines.dataset.format import open_dataset
from pipelines.runs.evaluations import read_record
from pipelines.runs.folder import RunFolder

ROOT = Path(__file__).parents[2]
EARLIER = "42be6e0fe2"
pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(900)]

TRAINING = (
    *("--ingest.slice-size", "16", "--training.global-batch-size", "16", "--tracking.experiment", "earlier"),
    *("--tracking.system-metrics-every-n-seconds", "None", "--json"),
)


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the earlier version's code."""
    archive = subprocess.run(
        ["git", "-C", str(ROOT), "archive", EARLIER, "groupvit", "pipelines"], capture_output=True, check=False
    )
    if archive.returncode:
        pytest.skip(f"the history of this clone does not reach {EARLIER}")
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def data(earlier: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    sizes = ("--num-training-scenes", "96", "--num-validation-scenes", "8", "--num-calibration-scenes", "8")
    run(earlier, "demo-data", "shapes", "--out", str(folder), *sizes, "--training-side", "40")
    return folder


def of_version(code: Path) -> dict[str, str]:
    """The environment in which the code of that folder is imported, and no other."""
    return os.environ | {"PYTHONPATH": str(code)}


def run(code: Path, *arguments: str) -> str:
    """What a version's command prints; the version is the code in the folder `code`."""
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *arguments],
        cwd=code,
        env=of_version(code),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def weights(run_folder: Path, step: int) -> torch.Tensor:
    """All numbers of a checkpoint's model."""
    tensors = load_file(run_folder / f"checkpoints/step-{step:08d}/model.safetensors")
    return torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])


def test_a_run_is_resumed_with_the_same_weights_but_rounding(earlier: Path, data: Path, tmp_path: Path) -> None:
    flags = ("--data", str(data / "train"), *TRAINING, "--training.num-steps", "6", "--training.run-name", "run")
    flags += ("--training.checkpoint-every-n-steps", "3", "--training.keep-checkpoints", "None")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(earlier, "pretrain", "debug", *flags, "--training.runs-folder", str(whole))
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "run/checkpoints/step-00000006")
    shown = run(ROOT, "pretrain", "debug", *flags, "--training.runs-folder", str(cut))
    assert json.loads(shown.splitlines()[-1])["resumed_from_step"] == 3
    before, expected, resumed = weights(whole / "run", 3), weights(whole / "run", 6), weights(cut / "run", 6)
    assert (resumed - expected).norm() < 0.02 * (expected - before).norm()  # the earlier version rounds differently

    evaluate = ("--checkpoint", str(whole / "run"), "--root", str(data / "validation"), "--num-pictures", "0", "--json")
    scores = [
        json.loads(run(code, "evaluate", *evaluate, "--out", str(tmp_path / f"out-{index}")).splitlines()[-1])
        for index, code in enumerate((earlier, ROOT))
    ]
    assert scores[0]["metrics"]["seen/miou"] == pytest.approx(scores[1]["metrics"]["seen/miou"], abs=1e-9)


def test_a_data_set_is_read(data: Path, tmp_path: Path) -> None:
    assert open_dataset(str(data / "train")).num_samples == 96
    page = str(tmp_path / "page.html")
    shown = run(ROOT, "inspect", str(data / "train"), "--verify", "--out", page, "--json")
    summary = json.loads(shown.splitlines()[-1])
    assert (summary["schema_version"], summary["num_samples_verified"]) == (1, 96)


@pytest.mark.slow
def test_a_sweep_that_was_killed_is_finished(earlier: Path, data: Path, tmp_path: Path) -> None:
    command = ("sweep", "debug", "--base", "debug", "--max-concurrent", "1", "--data", str(data / "train"), *TRAINING)
    command += ("--evaluation.root", str(data / "validation"), "--evaluation.num-pictures", "0", "--name", "sweep")
    command += ("--training.runs-folder", str(tmp_path), "--num-steps", "4", "--rung-every-n-steps", "2")
    folder = tmp_path / "sweep"

    def finished() -> dict[str, dict[str, float]]:  # step to mIoU of each trial
        records = [json.loads(file.read_text())["record"] for file in (folder / "records").glob("*.json")]
        return {record["name"]: record["scores"] for record in records if record["status"] == "finished"}

    log = tmp_path / "earlier.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.cli", *command],
            cwd=earlier,
            env=of_version(earlier),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 400
        while not finished():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    first = finished()
    assert 1 <= len(first) < 4
    run(ROOT, *command)
    assert len(finished()) == 4 and first.items() <= finished().items()
    for name in finished():
        assert sorted(read_record(RunFolder(str(folder / name))).scores) == [2, 4]
