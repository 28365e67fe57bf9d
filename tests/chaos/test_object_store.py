"""Runs whose object storage fails on the way: they finish, with the result of a run that nothing disturbed."""

import dataclasses
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import storage
from pipelines.curation.config import CurateConfig
from pipelines.curation.curate import curate
from pipelines.experiments.config import ExperimentConfig
from pipelines.training.pretrain import pretrain
from tests.support.faulty_proxy import FAULTS, FaultyProxy
from tests.support.local_cluster import local_cluster
from tests.support.object_store import ObjectStore
from tests.support.raw_shards import good_rows, raw_row, write_shards
from tests.support.small_run import (
    NUM_STEPS,
    assert_every_epoch_saw_every_sample_once,
    assert_same_result,
    consumed,
    make_config,
    wait_for_step,
    write_noise,
)

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """A server of this module's own: it is killed."""
    with ObjectStore(tmp_path_factory.mktemp("store")) as server:
        server.create_bucket("bucket")
        yield server


@pytest.fixture(scope="module")
def from_disk(runs: Path) -> Path:
    """The folder of a run without object storage."""
    data = write_noise(str(runs / "data"))
    with local_cluster(3):
        pretrain(make_config(data, runs, "from-disk", num_workers=2))
    return runs / "from-disk"


def connect(patch: pytest.MonkeyPatch, store: ObjectStore, endpoint: str | None = None) -> None:
    """Processes that start from here on find the server, or what stands before it."""
    for name, value in store.environment.items():
        patch.setenv(name, value)
    if endpoint is not None:
        patch.setenv("AWS_ENDPOINT_URL", endpoint)


def on_object_store(runs: Path, name: str) -> ExperimentConfig:
    """A run with data, checkpoints and MLflow artifacts in the bucket."""
    data = write_noise(f"s3://bucket/{name}/data")
    config = make_config(data, runs, name, num_workers=2)
    return dataclasses.replace(
        config,
        tracking=dataclasses.replace(config.tracking, uri=f"sqlite:///{runs}/mlflow.db"),
        training=dataclasses.replace(config.training, runs_folder="s3://bucket/runs"),
    )


def download_checkpoint(name: str, folder: Path) -> Path:
    last = f"checkpoints/step-{NUM_STEPS:08d}"
    (folder / last).mkdir(parents=True)
    for file in ("model.safetensors", "optimizer.pt"):
        storage.copy(f"s3://bucket/runs/{name}/{last}/{file}", str(folder / last / file))
    return folder


def make_curation(raw: str, out: str) -> CurateConfig:
    return CurateConfig(raw=(raw,), out=out, rows_per_piece=50, rows_per_group=16, groups_per_file=3, num_workers=2)


def test_store_that_is_killed_and_started_again(
    runs: Path, store: ObjectStore, from_disk: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = "store-killed"
    connect(monkeypatch, store)
    config = on_object_store(runs, name)
    away: list[float] = []

    def kill() -> None:
        wait_for_step(runs, name, 10, alive=lambda: True)  # before the checkpoints of steps 14, 21, 28
        store.kill()
        started = time.monotonic()
        time.sleep(5)
        store.start()
        away.append(time.monotonic() - started)

    killer = threading.Thread(target=kill)
    killer.start()
    pretrain(config)
    killer.join()
    assert away and away[0] >= 5
    assert_every_epoch_saw_every_sample_once(runs, name)
    assert consumed(runs, name) == consumed(runs, "from-disk")
    assert_same_result(download_checkpoint(name, tmp_path), from_disk)


def test_every_twentieth_request_fails_somehow(
    runs: Path, store: ObjectStore, from_disk: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = "faulty-network"
    with FaultyProxy(store.port, every=20, seed=0) as proxy:
        connect(monkeypatch, store, proxy.url)
        pretrain(on_object_store(runs, name))
        assert set(proxy.faults) == set(FAULTS), (proxy.num_requests, proxy.faults)
    connect(monkeypatch, store)
    assert_every_epoch_saw_every_sample_once(runs, name)
    assert_same_result(download_checkpoint(name, tmp_path), from_disk)


def test_curation_from_and_to_a_store_that_fails(
    runs: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed and started again, then behind a faulty network: the data set is the one made on disk."""
    rows = good_rows(range(400), width=70, height=64)
    rows += [raw_row(1000 + number, rows[number]["jpg"]) for number in range(30)]
    raw = write_shards(runs / "raw", rows, 200)
    expected = curate(make_curation(str(raw), str(runs / "curated")))
    connect(monkeypatch, store)
    for path in raw.iterdir():
        storage.write_bytes(f"s3://bucket/raw/{path.name}", path.read_bytes())

    def kill() -> None:
        while not storage.list_files("s3://bucket/killed/_curation/index"):
            time.sleep(0.05)
        store.kill()
        time.sleep(5)
        store.start()

    killer = threading.Thread(target=kill)
    killer.start()
    assert curate(make_curation("s3://bucket/raw", "s3://bucket/killed"))["digest"] == expected["digest"]
    killer.join()

    with FaultyProxy(store.port, every=20, seed=1) as proxy:
        connect(monkeypatch, store, proxy.url)
        assert curate(make_curation("s3://bucket/raw", "s3://bucket/faulty"))["digest"] == expected["digest"]
        assert set(proxy.faults) == set(FAULTS), (proxy.num_requests, proxy.faults)
