"""Curation that is killed with -9 over and over, and started again: what comes out must not differ by a bit."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import ray

from pipelines.dataset.format import open_dataset
from tests.support.raw_shards import good_rows, raw_row, write_shards

NUM_CPUS = 2
NUM_KILLS = 10

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def address(cluster: None) -> str:
    """One cluster for all drivers: to start one for each would take most of the time."""
    return ray.get_runtime_context().gcs_address


def files_of(out: Path) -> list[Path]:
    return [path for path in out.rglob("*") if path.is_file()]


def actors() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "PieceCurator" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_killed_at_any_moment_and_started_again(address: str, tmp_path: Path) -> None:
    rows = good_rows(range(700), width=70, height=64)
    rows += [raw_row(1000 + number, rows[number]["jpg"]) for number in range(50)]
    raw = write_shards(tmp_path / "raw", rows, 250)
    environment = {**os.environ, "RAY_ADDRESS": address}

    def command(out: Path) -> list[str]:
        flags = ["--rows-per-piece", "100", "--rows-per-group", "16", "--groups-per-file", "3", "--json"]
        return [sys.executable, "-m", "pipelines.cli", "curate", "--raw", str(raw), "--out", str(out), *flags]

    def finish(out: Path) -> dict:
        done = subprocess.run(command(out), capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    seen = 0
    expected = finish(tmp_path / "uninterrupted")
    assert expected["drops"] == {"duplicate": 50} and expected["num_samples"] == 700

    out = tmp_path / "killed"
    # Moments by how far it is: of the about 48 files that come and go before the data set is there.
    moments = sorted(random.sample(range(1, 46), NUM_KILLS))
    for number, moment in enumerate(moments):
        with (tmp_path / f"{number}.log").open("wb") as log:
            driver = subprocess.Popen(command(out), stdout=log, stderr=subprocess.STDOUT, env=environment)
            while driver.poll() is None and (seen := len(files_of(out))) < moment:
                time.sleep(0.01)
            time.sleep(random.uniform(0, 0.2))
            victims = actors() if number % 2 else []
            if victims:  # a worker: the driver goes on, and is killed at the next moment
                victims[0].kill()
            driver.kill()
            driver.wait()
        if (out / "dataset.json").exists():
            break
        with pytest.raises(ValueError, match=r"no dataset\.json"):
            open_dataset(str(out))
    summary = finish(out)
    assert summary["digest"] == expected["digest"], (moments, seen)
    assert {**summary, "out": ""} == {**expected, "out": ""}
    assert not (out / "_curation").exists()
    assert sorted(path.name for path in (out / "data").iterdir()) == sorted(
        Path(file).name for file in open_dataset(str(out)).files
    )


def test_a_worker_that_is_killed_is_replaced(address: str, tmp_path: Path) -> None:
    raw = write_shards(tmp_path / "raw", good_rows(range(600), width=70, height=64), 100)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "pipelines.cli", "curate", "--raw", str(raw), "--out", str(out), "--json"]
    command += ["--rows-per-piece", "100"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "RAY_ADDRESS": address}
    ) as driver:
        while driver.poll() is None and not list(out.glob("_curation/index/*.parquet")):
            time.sleep(0.01)
        for victim in actors():
            victim.kill()
        shown, errors = driver.communicate()
    assert driver.returncode == 0, errors
    assert json.loads(shown.splitlines()[-1])["num_samples"] == 600
