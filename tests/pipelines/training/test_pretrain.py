"""What pretraining refuses, counts and records. Resuming is in tests/chaos."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import ray
from mlflow import MlflowClient

import groupvit
from pipelines import storage
from pipelines.experiments.catalogue import debug
from pipelines.experiments.config import ExperimentConfig
from pipelines.runs.evaluations import EvaluationRecord, write_record
from pipelines.runs.folder import RunFolder
from pipelines.training.job import start_or_continue, with_absolute_paths
from pipelines.training.pretrain import pretrain
from tests.support.dataset_folder import make_dataset
from tests.support.scenes_folder import write_scenes
from tests.support.training_state import training_state

pytestmark = pytest.mark.timeout(900)  # starting Ray's processes takes minutes on a machine that is busy

NUM_CPUS = 3


def make_config(data: str, runs: Path, /, **changes: dict[str, Any]) -> ExperimentConfig:
    config = debug()
    fixed: dict[str, dict[str, Any]] = {
        "data": {"sources": (data,)},
        "ingest": {"slice_size": 8, "window_size": 32},
        "training": {"num_steps": 6, "global_batch_size": 16, "runs_folder": str(runs), "checkpoint_every_n_steps": 2},
        "tracking": {"uri": None},
    }
    parts = {
        part: dataclasses.replace(getattr(config, part), **{**fixed.get(part, {}), **changes.get(part, {})})
        for part in fixed | changes
    }
    return dataclasses.replace(config, **parts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"sources": ("nowhere",)}}, "data.sources: .*nowhere: no dataset.json"),
        ({"training": {"global_batch_size": 48}}, "training.global_batch_size=48 .* 40 samples"),
        (
            {"training": {"global_batch_size": 1024, "num_workers": 128}},
            "training.num_workers=128 with 1 CPU each needs 128 CPUs, and this machine has",
        ),
        ({"training": {"device": "gpu"}}, "training.num_workers=1 with 1 GPU each needs 1 GPUs"),
    ],
)
def test_refuses_before_ray_starts(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    ray.shutdown()  # whatever another test left
    num_samples = 2048 if "num_workers" in changes.get("training", {}) else 40
    data = make_dataset(tmp_path / "data", num_samples).uri
    with pytest.raises(ValueError, match=message) as caught:
        pretrain(make_config(data, tmp_path / "runs", **changes))
    assert "\n" not in str(caught.value)
    assert not ray.is_initialized()


def test_refuses_more_workers_than_the_cluster_has_cpus(tmp_path: Path, cluster: None) -> None:
    data = make_dataset(tmp_path / "data", 40).uri
    with pytest.raises(ValueError, match=r"training.num_workers=4 .* needs 4 CPUs, .* has 2: give at most 2"):
        pretrain(make_config(data, tmp_path / "runs", training={"num_workers": 4, "global_batch_size": 32}))


def test_a_complete_run_given_again_says_its_results_without_ray(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ray.shutdown()  # whatever another test left
    data = make_dataset(tmp_path / "data", 40)
    scenes = str(write_scenes(tmp_path / "scenes", 4))
    changes = {"evaluation": {"every_n_steps": 3, "root": scenes}}
    config = with_absolute_paths(make_config(data.uri, tmp_path / "runs", **changes))
    run = RunFolder(f"{tmp_path}/runs/debug")
    start_or_continue(run, config, [data])
    for step in (3, 6):
        state = training_state(step, loss=2.25, train_seconds=48.0)
        storage.write_bytes(f"{run.checkpoint_uri(step)}/state.json", json.dumps(state).encode())
    write_record(run, EvaluationRecord(scores={3: 41.25, 6: 40.0}))
    before = sorted(path for path in tmp_path.rglob("*"))

    summary = pretrain(config)
    assert summary["resumed_from_step"] == summary["step"] == 6
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "debug: complete at step 6  loss 2.2500  trained 0:00:48 at 2 images/s",  # 6 x 16 images
        "best evaluation: mIoU 41.25 % at step 3",
        f"checkpoint: {run.checkpoint_uri(6)}",
    ]
    assert not ray.is_initialized()
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_refuses_an_experiment_that_was_deleted_before_it_trains(
    tmp_path: Path, cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    data, uri = make_dataset(tmp_path / "data", 40).uri, f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(uri)
    client.delete_experiment(client.create_experiment("deleted"))
    with pytest.raises(ValueError, match=r"tracking.uri=.*: experiment 1 was deleted: .*another --tracking.experiment"):
        pretrain(make_config(data, tmp_path / "runs", tracking={"uri": uri, "experiment": "deleted"}))
    assert "training from" not in capsys.readouterr().out


@pytest.mark.slow
def test_counts_corrupt_images_and_writes_self_contained_checkpoints(
    tmp_path: Path, cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_dataset(tmp_path / "data", 48, corrupt=(3, 30))
    config = make_config(data.uri, tmp_path / "runs", training={"num_steps": 6, "keep_checkpoints": 2})
    summary = pretrain(config)
    assert summary["substituted_images"] == 4  # 6 steps of 16 are two epochs
    assert summary["mlflow_run_id"] is None
    json.dumps(summary)

    folder = Path(summary["checkpoint"])
    assert sorted(path.name for path in folder.parent.iterdir()) == ["step-00000004", "step-00000006"]
    state = json.loads((folder / "state.json").read_text())
    assert state["step"] == 6
    assert state["samples_seen"] == [96]
    assert state["job_id"] == json.loads((tmp_path / "runs/debug/run.json").read_text())["job_id"]
    assert set(state["files"]) == {"model.safetensors", "optimizer.pt"}
    assert state["datasets"][0]["digest"] == data.digest
    assert state["config"]["optimizer"]["learning_rate"] == config.optimizer.learning_rate
    assert groupvit.load(folder).config == config.model

    # The same command again has nothing to do, and says the same.
    printed = capsys.readouterr().out.splitlines()
    again = pretrain(config)
    assert capsys.readouterr().out.splitlines() == printed[-2:]
    assert again == {**summary, "resumed_from_step": 6}
    # What would make it another run is refused.
    other = make_config(data.uri, tmp_path / "runs", training={"num_steps": 6}, loss={"num_prompts": 1})
    with pytest.raises(
        ValueError, match=r"loss.num_prompts=1, but run 'debug' .* was started with 2: continue it with"
    ):
        pretrain(other)


@pytest.mark.slow
def test_stops_without_another_try_above_the_rate_of_corrupt_images(
    tmp_path: Path, cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_dataset(tmp_path / "data", 48, corrupt=range(0, 48, 2))
    message = r"\d+ of \d+ images were corrupt, .* ingest.max_corrupt_fraction=0.01"
    with pytest.raises(ValueError, match=message) as caught:
        pretrain(make_config(data.uri, tmp_path / "runs", training={"max_failures": 3}))
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out.count("debug: training from the start") == 1


@pytest.mark.slow
def test_says_so_once_when_a_whole_window_is_corrupt(
    tmp_path: Path, cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_dataset(tmp_path / "data", 48, corrupt=range(48))
    with pytest.raises(ValueError, match="none of the 32 images of a window can be decoded") as caught:
        pretrain(make_config(data.uri, tmp_path / "runs", training={"max_failures": 3, "num_workers": 2}))
    assert "\n" not in str(caught.value)
    shown = capsys.readouterr().out
    assert shown.count("debug: training from the start") == 1
    assert "DataContext" not in shown
