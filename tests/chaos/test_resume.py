"""Runs that lose a worker or the driver to kill -9, and continue: what comes out must not differ by a bit."""

import collections
import dataclasses
import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
import torch
from mlflow import MlflowClient
from PIL import Image
from safetensors.torch import load_file

from pipelines.config import ExperimentConfig
from pipelines.experiments import debug
from pipelines.pretrain import pretrain
from pipelines.schema import sample_id, write_dataset

NUM_SAMPLES, NUM_STEPS, BATCH = 96, 30, 16  # 5 epochs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Noise with captions: what matters here is which sample comes when."""
    rng = np.random.default_rng(0)
    rows = []
    for index in range(NUM_SAMPLES):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(file, "JPEG")
        image, caption = file.getvalue(), f"a thing number {index}"
        row = {
            "sample_id": sample_id(image, caption),
            "image": image,
            "caption": caption,
            "nouns": ["thing", f"t{index}"],
        }
        rows.append({**row, "width": 40, "height": 40})
    uri = str(tmp_path_factory.mktemp("data") / "train")
    write_dataset(uri, rows, rows_per_group=10)  # 96 is no multiple: a short row group is among them
    return uri


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=5, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def uninterrupted(data: str, runs: Path, cluster: None) -> Path:
    """The folder of a run of two workers that nothing disturbed."""
    pretrain(make_config(data, runs, "uninterrupted", num_workers=2))
    return runs / "uninterrupted"


def make_config(data: str, runs: Path, name: str, *, num_workers: int) -> ExperimentConfig:
    base = debug()
    return dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, sources=(data,)),
        ingest=dataclasses.replace(base.ingest, slice_size=4, window_size=32),
        tracking=dataclasses.replace(base.tracking, experiment="chaos", system_metrics_every_n_seconds=None),
        training=dataclasses.replace(
            base.training,
            num_steps=NUM_STEPS,
            global_batch_size=BATCH,
            num_workers=num_workers,
            checkpoint_every_n_steps=7,
            runs_folder=str(runs),
            run_name=name,
            record_samples=str(runs / "samples" / name),
            ema_decay=0.9,
        ),
    )


def as_flags(config: ExperimentConfig) -> list[str]:
    flags = ["--data.sources", *config.data.sources, "--tracking.experiment", config.tracking.experiment]
    flags += ["--tracking.system-metrics-every-n-seconds", "None"]
    for part, names in {
        "ingest": ("slice_size", "window_size"),
        "training": (
            *("num_steps", "global_batch_size", "num_workers", "checkpoint_every_n_steps"),
            *("runs_folder", "run_name", "record_samples", "ema_decay"),
        ),
    }.items():
        for name in names:
            flags += [f"--{part}.{name.replace('_', '-')}", str(getattr(getattr(config, part), name))]
    return flags


def consumed(runs: Path, name: str) -> dict[tuple[int, int], tuple[list[str], list[int]]]:
    """(step, slice) → (sample ids, epochs). What was done twice, because a run was interrupted, must be the same."""
    found: dict[tuple[int, int], tuple[list[str], list[int]]] = {}
    for file in (runs / "samples" / name).iterdir():
        for text in file.read_text().splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue  # cut by the kill
            value = (line["ids"], line["epochs"])
            assert found.setdefault((line["step"], line["slice"]), value) == value
    return found


def last_recorded_step(runs: Path, name: str) -> int:
    folder = runs / "samples" / name
    steps = [file.read_bytes().count(b"\n") // 2 for file in folder.glob("rank-*")]  # 2 slices per worker and step
    return max(steps, default=0)


def wait_for_step(runs: Path, name: str, step: int, alive: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while last_recorded_step(runs, name) < step:
        assert alive(), "the run ended before it was to be killed"
        assert time.monotonic() < deadline, f"step {step} was not reached"
        time.sleep(0.01)


def first_losses(runs: Path, name: str) -> list[float]:
    records = [json.loads(line) for line in (runs / name / "tracking" / "spool.jsonl").read_text().splitlines()]
    return [record["metrics"]["train/loss"] for record in records if record.get("training") and record["step"] <= 3]


def assert_same_result(folder: Path, expected: Path) -> None:
    last = f"checkpoints/step-{NUM_STEPS:08d}"
    weights, wanted = load_file(folder / last / "model.safetensors"), load_file(expected / last / "model.safetensors")
    assert weights.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(weights[name], tensor), name
    states = [torch.load(path / last / "optimizer.pt", weights_only=True) for path in (folder, expected)]
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


def assert_one_run_with_each_step_once(runs: Path, name: str) -> None:
    client = MlflowClient(f"sqlite:///{runs}/mlflow.db")
    experiment = client.get_experiment_by_name("chaos")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{name}'")
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [metric.step for metric in history] == list(range(1, NUM_STEPS + 1))
    assert run.info.status == "FINISHED"


def test_every_epoch_sees_every_sample_once(runs: Path, uninterrupted: Path) -> None:
    samples = consumed(runs, "uninterrupted")
    assert len(samples) == NUM_STEPS * BATCH // 4
    seen: dict[int, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for ids, epochs in samples.values():
        for name, epoch in zip(ids, epochs, strict=True):
            seen[epoch][name] += 1
    assert sorted(seen) == list(range(NUM_STEPS * BATCH // NUM_SAMPLES))
    for counts in seen.values():
        assert len(counts) == NUM_SAMPLES
        assert set(counts.values()) == {1}


@pytest.mark.parametrize("num_workers", [1, 4])
def test_order_does_not_depend_on_the_number_of_workers(
    data: str, runs: Path, uninterrupted: Path, num_workers: int
) -> None:
    name = f"workers-{num_workers}"
    pretrain(make_config(data, runs, name, num_workers=num_workers))
    assert consumed(runs, name) == consumed(runs, "uninterrupted")
    # The same batches, so the same losses, until rounding has flipped the first hard assignment.
    assert first_losses(runs, name) == pytest.approx(first_losses(runs, "uninterrupted"), rel=1e-3)


def test_killed_worker(data: str, runs: Path, uninterrupted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "killed-worker"
    step, victim = random.randint(9, NUM_STEPS - 8), random.randrange(2)
    killed: list[int] = []

    def kill() -> None:
        wait_for_step(runs, name, step, alive=lambda: True)
        workers = [
            process.pid
            for process in psutil.Process().children(recursive=True)
            if process.status() != psutil.STATUS_ZOMBIE
            and process.cmdline()[:1]
            and "RayTrainWorker" in process.cmdline()[0]
        ]
        os.kill(workers[victim], signal.SIGKILL)
        killed.append(last_recorded_step(runs, name))

    killer = threading.Thread(target=kill)
    killer.start()
    pretrain(make_config(data, runs, name, num_workers=2))
    killer.join()
    shown = capsys.readouterr().out
    assert killed, (step, victim)
    assert f"{name}: training from step" in shown, (step, victim, killed)
    assert consumed(runs, name) == consumed(runs, "uninterrupted")
    assert_same_result(runs / name, uninterrupted)
    assert_one_run_with_each_step_once(runs, name)


def test_killed_driver(data: str, runs: Path, uninterrupted: Path, tmp_path: Path) -> None:
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
    assert consumed(runs, name) == consumed(runs, "uninterrupted")
    assert_same_result(runs / name, uninterrupted)
    assert_one_run_with_each_step_once(runs, name)
