"""The disk to which Ray spills its objects is full: the run says so in one line, and goes on once there is room."""

import threading
from collections.abc import Iterator
from itertools import chain, cycle
from pathlib import Path

import numpy as np
import pytest
import ray
from ray.exceptions import OutOfDiskError

from pipelines.cli.main import main
from pipelines.cluster.causes import root_cause
from pipelines.cluster.session import shut_down
from pipelines.runs.damage import newest_whole_step
from pipelines.runs.folder import RunFolder
from tests.support.small_disk import small_disk
from tests.support.small_run import NUM_STEPS, as_flags, assert_same_result, consumed, make_config, write_noise

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(600)]

LARGE = ["--model.image.image-size", "128", "--model.image.patch-size", "32", "--ingest.slice-size", "16"]
"""A slice has 0.8 MB. Ray keeps objects below 0.1 MB elsewhere."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "24m") as folder:
        yield folder


@pytest.fixture
def small_store(disk: Path) -> Iterator[None]:
    """Ray on this machine, with 80 MB for objects, and `disk` to spill them to."""
    ray.shutdown()  # whatever another test left
    ray.init(
        address="local",
        num_cpus=3,
        object_store_memory=80_000_000,
        object_spilling_directory=str(disk),
        include_dashboard=False,
        log_to_driver=False,
    )
    yield
    shut_down()


class Neighbour:
    """Another user of the cluster, who takes what room there is for objects, on disk and in memory, until it leaves."""

    def __init__(self) -> None:
        self.leaves = threading.Event()
        self.refusals: list[OutOfDiskError] = []
        self._objects: list[ray.ObjectRef] = []

    def fill_after_a_checkpoint_of(self, run: RunFolder) -> None:
        while not run.latest_step():
            if self.leaves.wait(0.02):
                return
        for size in chain([8_000_000], cycle((700_000, 200_000))):
            try:
                while not self.leaves.is_set():
                    self._objects.append(ray.put(np.zeros(size, np.uint8)))
                break
            except OutOfDiskError as error:
                self.refusals.append(error)
        self._objects.clear()


def test_a_full_disk_while_ray_spills(
    tmp_path: Path, disk: Path, small_store: None, capfd: pytest.CaptureFixture[str]
) -> None:
    data = write_noise(str(tmp_path / "data"))

    def command(name: str) -> list[str]:
        config = make_config(data, tmp_path, name, num_workers=1, max_failures=0)
        return ["pretrain", "debug", *as_flags(config), *LARGE]

    assert main(command("calm")) == 0
    run, neighbour = RunFolder(f"{tmp_path}/full"), Neighbour()
    filling = threading.Thread(target=neighbour.fill_after_a_checkpoint_of, args=(run,))
    filling.start()
    capfd.readouterr()
    try:
        assert main(command("full")) == 1
    finally:
        neighbour.leaves.set()
        filling.join()
    line = capfd.readouterr().err.splitlines()[-1]
    assert "the disk to which Ray spills objects is full on " in line and "free space there" in line, line
    assert "Traceback" not in line and "File " not in line, line
    assert any(path.is_file() for path in disk.rglob("*"))
    assert root_cause(neighbour.refusals[-1]).line.startswith("the disk to which Ray spills objects is full, and so")
    damaged: list[str] = []
    stopped_at = newest_whole_step(run, damaged.append)
    assert not damaged and 0 < stopped_at < NUM_STEPS and stopped_at % 7 == 0
    assert main(command("full")) == 0
    assert f"full: training from step {stopped_at} on" in capfd.readouterr().out
    assert consumed(tmp_path, "full") == consumed(tmp_path, "calm")
    assert_same_result(tmp_path / "full", tmp_path / "calm")
