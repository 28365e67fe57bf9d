"""What holds for every test: one thread, nothing reports home, also where pytest is not run through make; and what
several files share.
"""

import os
import signal
import sys
import uuid
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from typing import Any

import pytest
import torch

from tests.support.miniatures import Photo, fetch_photos
from tests.support.mlflow_server import MlflowServer
from tests.support.object_store import ObjectStore

for name, value in {
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # At the size of tests, threads wait more than they compute: up to 40 times the CPU time on 2 cores.
    "OMP_NUM_THREADS": "1",
    # Or whatever else this machine does lets Ray's workers wait, and tests with them.
    "RAY_worker_niceness": "0",
}.items():
    os.environ.setdefault(name, value)
# A shell lets what it starts in the background ignore Ctrl-C, and the commands that tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))  # in this process, which has read the environment already


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="skip tests that start Ray, a server or another Python")


@pytest.fixture(scope="session", autouse=True)
def fast(request: pytest.FixtureRequest) -> Iterator[None]:
    """With --fast, a test is skipped at the moment when it starts such a process."""

    def skip(*_: object) -> None:
        pytest.skip("starts Ray, a server or another Python")

    def skip_at_start(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "subprocess.Popen":
            command = os.fsdecode(arguments[0]) + " " + str(arguments[1])
            if any(name in command for name in (sys.executable, "gcs_server", "object_store/serve")):
                skip()

    with pytest.MonkeyPatch.context() as patch:
        if request.config.getoption("--fast"):
            sys.addaudithook(skip_at_start)
            patch.setattr(BaseProcess, "start", skip)
        yield


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """An S3 server for all tests that do not harm it."""
    with ObjectStore(tmp_path_factory.mktemp("object-store")) as store:
        yield store


@pytest.fixture
def bucket(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a new bucket; the environment names its server and keys."""
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    return object_store.create_bucket(f"bucket-{uuid.uuid4().hex[:12]}")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """An MLflow server for all tests; one that kills it starts it again."""
    with MlflowServer(tmp_path_factory.mktemp("mlflow")) as server:
        yield server


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[None]:
    """Ray on this machine, with the NUM_CPUS of the test module."""
    from tests.support.local_cluster import local_cluster  # Ray: most tests do without it

    with local_cluster(request.module.NUM_CPUS):
        yield


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Photo]:
    """Three real photos with real masks; tests that ask for them are skipped where pip cannot fetch them."""
    return fetch_photos(tmp_path_factory.mktemp("photos"))
