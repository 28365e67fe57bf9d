"""Machines that go and come while a run trains: what comes out must be what a calm run gives."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.machines import Network, missing_for_machines
from tests.support.small_run import consumed, repeated_steps
from tests.support.weather import PYTHON, ROOT, Cluster, flags_of, shared_folder

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.cluster,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(missing_for_machines() is not None, reason=str(missing_for_machines())),
]

MAKE_DATA = """
from pyarrow import fs
import os
from tests.support.small_run import write_noise
store = fs.S3FileSystem(allow_bucket_creation=True, endpoint_override=os.environ["AWS_ENDPOINT_URL"])
store.create_dir("bucket")
print(write_noise("s3://bucket/data"))
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.chdir(ROOT)
    with Network(tmp_path / "machines") as network:
        cluster = Cluster(network, head_cpus=2, node_cpus=1)
        cluster.on_head(PYTHON, "-c", MAKE_DATA)
        yield cluster


@pytest.fixture
def shared() -> Iterator[Path]:
    folder = Path(shared_folder())
    yield folder
    shutil.rmtree(folder)


def command(shared: Path, name: str, num_workers: str, num_steps: int) -> list[str]:
    """Twelve slices in a step, so that every number of workers that comes up divides them."""
    values = {
        "data": "s3://bucket/data",
        "ingest.slice-size": 2,
        "ingest.window-size": 32,
        "tracking.system-metrics-every-n-seconds": None,
        "training.num-steps": num_steps,
        "training.global-batch-size": 24,
        "training.num-workers": num_workers,
        "training.resize-every-n-seconds": 5,
        "training.checkpoint-every-n-steps": 10,
        "training.log-every-n-steps": 1,
        "training.max-failures": 9,
        "training.runs-folder": "s3://bucket/runs",
        "training.run-name": name,
        "training.record-samples": shared / "samples" / name,
        "training.ema-decay": 0.9,
    }
    return [PYTHON, "-m", "pipelines.cli", "pretrain", "debug", *flags_of(values)]


def test_a_drained_node_costs_no_step_and_a_new_one_is_taken(cluster: Cluster, shared: Path, tmp_path: Path) -> None:
    num_steps, log = 120, tmp_path / "log"
    nodes = [cluster.add_node(), cluster.add_node()]
    run = cluster.start_on_head(*command(shared, "elastic", "2:4", num_steps), log=log)

    def reach(step: int) -> None:
        def reached() -> bool:
            assert run.poll() is None, log.read_text()
            return (shared / "samples/elastic").exists() and max_step(shared, "elastic") >= step

        cluster.wait(reached, log.read_text(), 600)

    reach(15)
    cluster.drain(nodes[0])
    reach(max_step(shared, "elastic") + 10)
    cluster.remove(nodes[0])
    cluster.add_node()
    assert run.wait(timeout=900) == 0, log.read_text()
    print(log.read_text())
    text = log.read_text()
    sizes = [line.partition(" on ")[2].split()[0] for line in text.splitlines() if "training from" in line]
    assert sizes == ["4", "3", "4"], text
    assert repeated_steps(shared, "elastic") == []
    assert len(consumed(shared, "elastic")) == num_steps * 12


def max_step(runs: Path, name: str) -> int:
    """Number of steps with a record of each slice so far."""
    return max((step for step, _ in consumed(runs, name)), default=-1) + 1
