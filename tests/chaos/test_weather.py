"""Machines that go and come while a run trains: what comes out must be what a calm run gives."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.console.tables import aligned
from tests.support.machines import Network, missing_for_machines
from tests.support.small_run import NUM_SAMPLES, consumed, repeated_steps
from tests.support.storm import NUM_STEPS, Storm
from tests.support.weather import PYTHON, ROOT, Cluster, flags_of, shared_folder

BATCH = 24
pytestmark = [
    pytest.mark.chaos,
    pytest.mark.cluster,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(missing_for_machines() is not None, reason=str(missing_for_machines())),
]

SEEDS = [int(seed) for seed in os.environ.get("STORM_SEEDS", "0").split(",")]
"""`make storm SEEDS=20` gives 0 to 19."""

OUTCOME = """
import hashlib, sys
from mlflow import MlflowClient
from pipelines import storage
from pipelines.runs.folder import RunFolder
name, num_steps = sys.argv[1], int(sys.argv[2])
client = MlflowClient()
experiments = [experiment.experiment_id for experiment in client.search_experiments()]
runs = client.search_runs(experiments, f"attributes.run_name = '{name}'")
weights = storage.read_bytes(RunFolder(f"s3://bucket/runs/{name}").checkpoint_uri(num_steps) + "/model.safetensors")
answer = {
    "statuses": [run.info.status for run in runs],
    "steps": [metric.step for metric in client.get_metric_history(runs[0].info.run_id, "train/loss")],
    "sha256": hashlib.sha256(weights).hexdigest(),
}
"""

MAKE_DATA = """
from pyarrow import fs
import os
from tests.support.small_run import write_noise
store = fs.S3FileSystem(allow_bucket_creation=True, endpoint_override=os.environ["AWS_ENDPOINT_URL"])
store.create_dir("bucket")
print(write_noise("s3://bucket/data"))
"""


@pytest.fixture(scope="module")
def cluster_of_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with contextlib.chdir(ROOT), Network(tmp_path_factory.mktemp("machines")) as network:
        cluster = Cluster(network, head_cpus=2, node_cpus=1)
        cluster.on_head(PYTHON, "-c", MAKE_DATA)
        yield cluster


@pytest.fixture
def cluster(cluster_of_all: Cluster) -> Iterator[Cluster]:
    """A cluster whose head is alone."""
    yield cluster_of_all
    cluster_of_all.clear()


@pytest.fixture(scope="module")
def shared() -> Iterator[Path]:
    folder = Path(shared_folder())
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def calm(cluster_of_all: Cluster, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came out of a run of one worker that nothing disturbed. Its name is `calm`."""
    log = tmp_path_factory.mktemp("calm") / "log"
    run = cluster_of_all.start_on_head(*command(shared, "calm", "1", NUM_STEPS), log=log)
    assert run.wait(timeout=600) == 0, log.read_text()
    return outcome(cluster_of_all, "calm")


def command(shared: Path, name: str, num_workers: str, num_steps: int) -> list[str]:
    """Twelve slices in a step, so that every number of workers that comes up divides them."""
    values = {
        "data": "s3://bucket/data",
        "ingest.slice-size": 2,
        "ingest.window-size": 32,
        "tracking.system-metrics-every-n-seconds": None,
        "training.num-steps": num_steps,
        "training.global-batch-size": BATCH,
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


@pytest.mark.slow
def test_a_drained_node_costs_no_step_and_a_new_one_is_taken(cluster: Cluster, shared: Path, tmp_path: Path) -> None:
    num_steps, log = 240, tmp_path / "log"  # more than pass while a machine joins
    nodes = [cluster.add_node(), cluster.add_node()]
    run = cluster.start_on_head(*command(shared, "elastic", "2:4", num_steps), log=log)

    def reach(step: int) -> None:
        def reached() -> bool:
            assert run.poll() is None, log.read_text()
            return max_step(shared, "elastic") >= step

        cluster.wait(reached, log.read_text(), 600)

    reach(15)
    cluster.drain(nodes[0])
    reach(max_step(shared, "elastic") + 10)
    cluster.remove(nodes[0])
    cluster.add_node()
    assert run.wait(timeout=900) == 0, log.read_text()
    text = log.read_text()
    sizes = [line.partition(" on ")[2].split()[0] for line in text.splitlines() if "training from" in line]
    assert sizes == ["4", "3", "4"], text
    assert repeated_steps(shared, "elastic") == []
    assert len(consumed(shared, "elastic")) == num_steps * 12


@pytest.mark.parametrize("seed", SEEDS)
def test_a_storm_changes_nothing(
    cluster: Cluster,
    shared: Path,
    calm: dict[str, Any],
    tmp_path: Path,
    seed: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cluster.add_node()
    cluster.add_node()
    name = f"storm-{seed}"
    storm = Storm(
        cluster, seed, command(shared, name, "2:4", NUM_STEPS), tmp_path / "log", lambda: max_step(shared, name)
    )
    storm.blow(seconds=1800)
    rows = [(str(event.step), event.kind, event.detail) for event in storm.events]
    with capsys.disabled():
        print(f"\nseed {seed}\n" + "\n".join(aligned(("step", "event", "outcome"), rows)))
    found = outcome(cluster, name)
    for result in (calm, found):
        assert result["statuses"] == ["FINISHED"]
        assert result["steps"] == list(range(1, NUM_STEPS + 1))
    assert found["sha256"] == calm["sha256"]
    samples = consumed(shared, name)
    assert samples == consumed(shared, "calm")
    pairs = [pair for ids, epochs in samples.values() for pair in zip(epochs, ids, strict=True)]
    assert len(set(pairs)) == len(pairs) == NUM_STEPS * BATCH  # whole epochs
    assert len({sample for _, sample in pairs}) == NUM_SAMPLES and not NUM_STEPS * BATCH % NUM_SAMPLES


def outcome(cluster: Cluster, name: str) -> dict[str, Any]:
    return cluster.ask(OUTCOME, name, str(NUM_STEPS))


def max_step(runs: Path, name: str) -> int:
    """Number of steps of which a slice is recorded."""
    if not (runs / "samples" / name).exists():
        return 0
    return max((step for step, _ in consumed(runs, name)), default=-1) + 1
