"""Evaluation beside a run: real training, real scoring actors, a real MLflow database; and the driver killed."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file

from pipelines.cli.main import main
from pipelines.evaluation.checkpoint_evaluator import CheckpointEvaluator
from pipelines.evaluation.config import EvaluateConfig
from pipelines.evaluation.evaluate import evaluate
from pipelines.experiments.catalogue import debug
from pipelines.experiments.config import ExperimentConfig, validate
from pipelines.experiments.scoring import EvaluationConfig
from pipelines.runs.evaluations import EvaluationRecord, read_record
from pipelines.runs.folder import RunFolder
from pipelines.training.pretrain import pretrain
from tests.support.dataset_folder import make_dataset
from tests.support.scenes_folder import write_scenes

pytestmark = pytest.mark.timeout(900)  # starting Ray's processes takes minutes on a machine that is busy

STEPS = [4, 8, 12]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("data")
    return {
        "train": make_dataset(folder / "train", 64).uri,
        "scenes": str(write_scenes(folder / "scenes", 20)),
        "runs": str(folder / "runs"),
    }


def make_config(folders: dict[str, str], name: str, **evaluation: object) -> ExperimentConfig:
    base = debug()
    return dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, sources=(folders["train"],)),
        ingest=dataclasses.replace(base.ingest, slice_size=8, window_size=32),
        training=dataclasses.replace(
            base.training,
            num_steps=STEPS[-1],
            global_batch_size=16,
            checkpoint_every_n_steps=6,
            keep_checkpoints=1,
            runs_folder=folders["runs"],
            run_name=name,
        ),
        tracking=dataclasses.replace(base.tracking, experiment="beside", system_metrics_every_n_seconds=None),
        evaluation=dataclasses.replace(
            EvaluationConfig(every_n_steps=4, root=folders["scenes"], num_pictures=2), **evaluation
        ),
    )


def history(folders: dict[str, str], run_id: str, metric: str) -> dict[int, set[float]]:
    client = MlflowClient(f"sqlite:///{folders['runs']}/mlflow.db")
    found: dict[int, set[float]] = {}
    for point in client.get_metric_history(run_id, metric):
        found.setdefault(point.step, set()).add(point.value)
    return found


@pytest.mark.slow
def test_results_land_at_their_steps_and_the_training_is_the_same(folders: dict[str, str], tmp_path: Path) -> None:
    summary = pretrain(make_config(folders, "evaluated"))
    record = summary["evaluations"]
    assert sorted(record["scores"]) == STEPS and not record["failures"]
    assert record["best_step"] == max(STEPS, key=lambda step: (record["scores"][step], -step))

    logged = history(folders, summary["mlflow_run_id"], "evaluation/miou")
    assert logged == {step: {score} for step, score in record["scores"].items()}
    assert sorted(history(folders, summary["mlflow_run_id"], "evaluation/seen/oracle_miou")) == STEPS
    client = MlflowClient(f"sqlite:///{folders['runs']}/mlflow.db")
    assert client.get_run(summary["mlflow_run_id"]).info.status == "FINISHED"
    for step in STEPS:
        files = client.list_artifacts(summary["mlflow_run_id"], f"evaluation/step-{step:08d}")
        names = {Path(file.path).name for file in files}
        assert {"per_class.csv", "examples_seen.png", "confusion_unseen.png", "metrics.json"} <= names
    pictures = [Path(file.path).name for file in client.list_artifacts(summary["mlflow_run_id"], "images")]
    assert {int(name.split("+step+")[1].split("+")[0]) for name in pictures if "seen" in name} == set(STEPS)

    # The best is registered, once.
    assert pretrain(make_config(folders, "evaluated"))["registered_model"] == summary["registered_model"]
    [version] = client.search_model_versions("name = 'debug'")
    assert summary["registered_model"] == f"models:/debug/{version.version}"
    assert version.tags["groupvit.step"] == str(record["best_step"])
    assert client.get_model_version_by_alias("debug", "best").version == version.version
    assert float(version.tags["groupvit.miou"]) == pytest.approx(record["scores"][record["best_step"]], abs=0.01)

    # The best is kept beside the newest, and gives its score again.
    run = RunFolder(f"{folders['runs']}/evaluated")
    assert run.checkpoint_steps() == sorted({record["best_step"], STEPS[-1]})
    again = evaluate(
        EvaluateConfig(
            checkpoint=run.checkpoint_uri(record["best_step"]), root=folders["scenes"], out=str(tmp_path / "again")
        )
    )
    mean = (again["metrics"]["seen/miou"] + again["metrics"]["unseen/miou"]) / 2
    assert mean == pytest.approx(record["scores"][record["best_step"]])

    alone = pretrain(make_config(folders, "alone", every_n_steps=None, root=""))
    assert alone["evaluations"] is None
    weights, expected = (load_file(Path(found["checkpoint"]) / "model.safetensors") for found in (summary, alone))
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())


@pytest.mark.chaos
def test_a_killed_driver_continues_with_what_is_missing(folders: dict[str, str]) -> None:
    """Killed after the first result, with more to come; the same command then evaluates each step once more at most."""
    config = make_config(folders, "killed")
    run = RunFolder(f"{folders['runs']}/killed")
    flags = [
        *("--data.sources", folders["train"], "--ingest.slice-size", "8", "--ingest.window-size", "32"),
        *("--training.num-steps", "12", "--training.global-batch-size", "16", "--training.runs-folder"),
        *(folders["runs"], "--training.run-name", "killed", "--training.checkpoint-every-n-steps", "6"),
        *("--training.keep-checkpoints", "1", "--tracking.experiment", "beside"),
        *("--evaluate-every-n-steps", "4", "--evaluation.root", folders["scenes"]),
    ]
    command = [sys.executable, "-m", "pipelines.cli", "pretrain", "debug", *flags]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 300
        while not read_record(run).scores:
            assert process.poll() is None, "the run ended before it was to be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    first = dict(read_record(run).scores)
    summary = pretrain(dataclasses.replace(config, tracking=dataclasses.replace(config.tracking)))
    scores = summary["evaluations"]["scores"]
    assert sorted(scores) == STEPS and all(scores[step] == score for step, score in first.items())
    logged = history(folders, summary["mlflow_run_id"], "evaluation/miou")
    assert logged == {step: {score} for step, score in scores.items()}
    client = MlflowClient(f"sqlite:///{folders['runs']}/mlflow.db")
    experiment = client.get_experiment_by_name("beside")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "attributes.run_name = 'killed'")
    assert len(runs) == 1
    assert pretrain(config)["evaluations"] == summary["evaluations"], "all is done"


def test_an_evaluation_that_fails_does_not_end_the_training(folders: dict[str, str], tmp_path: Path) -> None:
    scenes = write_scenes(tmp_path / "scenes", 6)
    file = scenes / "data" / "00001.parquet"
    rows = pq.read_table(file).to_pylist()
    rows[0]["image"] = rows[0]["image"][:100]
    pq.write_table(pa.Table.from_pylist(rows), file)
    summary = pretrain(make_config(folders, "failing", every_n_steps=12, root=str(scenes)))
    assert summary["step"] == 12 and summary["evaluations"]["best_step"] is None
    assert rows[0]["sample_id"] in summary["evaluations"]["failures"][12]


@pytest.mark.parametrize("content", ["", "[]", '{"scores": {"x": 1}, "failures": {}}', '{"scores": 3}'])
def test_what_ends_the_evaluations_ends_the_run(folders: dict[str, str], tmp_path: Path, content: str) -> None:
    run = RunFolder(str(tmp_path / "run"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run/evaluations.json").write_text(content)
    (tmp_path / "run/checkpoints/step-00000004").mkdir(parents=True)
    (tmp_path / "run/checkpoints/step-00000004/state.json").touch()
    evaluator = CheckpointEvaluator(make_config(folders, "damaged"), run, tmp_path / "results", None, print)
    with pytest.raises(ValueError, match=r"run/evaluations\.json is corrupted \(.*\): delete it"):
        evaluator.finish()


def test_waiting_and_best_checkpoints_are_kept() -> None:
    record = EvaluationRecord(scores={4: 20.0, 8: 30.0, 12: 30.0}, failures={16: "no"})
    assert record.best_step == 8
    assert record.kept_steps([4, 6, 8, 12, 16, 20, 22, 24, 26], 4, 26) == {8, 20, 24, 26}
    assert EvaluationRecord().kept_steps([4, 6], 4, 26) == {4}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"root": ""}, "evaluation.every_n_steps=4 needs data: give evaluation.root, the folder of scenes"),
        ({"every_n_steps": 0}, "evaluation.every_n_steps=0 is too small"),
        ({"benchmark": "imagenet"}, "evaluation.benchmark=imagenet is not for every few steps"),
    ],
)
def test_wrong_options_are_refused(folders: dict[str, str], fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate(make_config(folders, "wrong", **fields))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--evaluation.root", "/nowhere"], "evaluation: /nowhere is not a scenes folder"),
        (["--evaluation.root", "SCENES", "--evaluation.num-workers", "0"], "evaluation: num_workers=0 is too small"),
    ],
)
def test_missing_data_is_said_before_the_training(
    folders: dict[str, str], flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [folders["scenes"] if flag == "SCENES" else flag for flag in flags]
    arguments = ["pretrain", "debug", "--data", folders["train"], "--training.runs-folder", folders["runs"]]
    arguments += ["--training.run-name", "refused", "--evaluate-every-n-steps", "10", *given]
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not (Path(folders["runs"]) / "refused").exists()


def test_the_record_survives_a_round_trip(tmp_path: Path) -> None:
    from pipelines.runs.evaluations import write_record

    run = RunFolder(str(tmp_path / "run"))
    record = EvaluationRecord(scores={4: 20.5}, failures={8: "damaged"})
    write_record(run, record)
    assert read_record(run) == record
    assert json.loads((tmp_path / "run" / "evaluations.json").read_text())["best_step"] == 4
