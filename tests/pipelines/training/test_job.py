"""Whether a run may be continued."""

import dataclasses
import shutil
from pathlib import Path
from typing import Literal

import pytest
from mlflow import MlflowClient

from pipelines.experiments.catalogue import debug
from pipelines.experiments.config import ExperimentConfig
from pipelines.runs.evaluations import EvaluationRecord, write_record
from pipelines.runs.folder import RunFolder
from pipelines.tracking.places import database_uri
from pipelines.tracking.tracker import Tracker, metrics_record
from pipelines.training.job import start_or_continue
from tests.support.lone_worker import lone_config, train_alone


def test_a_run_of_a_version_without_a_field_had_its_default(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path))
    config = dataclasses.replace(debug(), tracking=dataclasses.replace(debug().tracking, uri=None))
    start_or_continue(run, config, [])
    description = run.read_description()
    assert description is not None
    del description["fixed"]["model.image.tau"]
    run.write_description(description)
    start_or_continue(run, config, [])

    image = dataclasses.replace(config.model.image, tau=2.0)
    other = dataclasses.replace(config, model=dataclasses.replace(config.model, image=image))
    with pytest.raises(ValueError, match=r"model.image.tau=2.0, but run 'debug' in runs was started with 1.0"):
        start_or_continue(run, other, [])


def test_a_run_keeps_the_pixels_that_it_was_started_with(tmp_path: Path) -> None:
    def with_resize(resize: Literal["auto", "torch", "pillow"]) -> ExperimentConfig:
        config = dataclasses.replace(debug(), tracking=dataclasses.replace(debug().tracking, uri=None))
        return dataclasses.replace(config, ingest=dataclasses.replace(config.ingest, resize=resize))

    run = RunFolder(str(tmp_path))
    assert start_or_continue(run, with_resize("auto"), []).config.ingest.resize == "torch"
    description = run.read_description()
    assert description is not None and description["fixed"]["ingest.resize"] == "torch"
    with pytest.raises(ValueError, match=r"ingest.resize=pillow, but .* was started with torch"):
        start_or_continue(run, with_resize("pillow"), [])

    del description["fixed"]["ingest.resize"]  # as a version before the field wrote it
    run.write_description(description)
    for resize in ("auto", "pillow"):
        assert start_or_continue(run, with_resize(resize), []).config.ingest.resize == "pillow"
    with pytest.raises(ValueError, match=r"ingest.resize=torch, but .* was started with pillow"):
        start_or_continue(run, with_resize("torch"), [])


def test_a_run_keeps_the_sums_that_it_was_started_with(tmp_path: Path) -> None:
    config = dataclasses.replace(debug(), tracking=dataclasses.replace(debug().tracking, uri=None))
    run = RunFolder(str(tmp_path))
    assert start_or_continue(run, config, []).config.training.reduce_precision == "exact"
    description = run.read_description()
    assert description is not None
    for recorded in (None, "float32", "bfloat16"):  # None: as a version before the field wrote it
        description["fixed"]["training.reduce_precision"] = recorded
        if recorded is None:
            del description["fixed"]["training.reduce_precision"]
        run.write_description(description)
        assert start_or_continue(run, config, []).config.training.reduce_precision == (recorded or "float32")


def test_metrics_that_a_lost_machine_had_not_sent_come_from_the_run_folder(
    tmp_path: Path,
) -> None:
    """In object storage, where the spool is on the machine of the worker, and of the driver for evaluations."""
    config = lone_config(tmp_path, log_every_n_steps=1)
    tracking = dataclasses.replace(config.tracking, uri=database_uri(f"{tmp_path}/mlflow.db"), experiment="tests")
    config = dataclasses.replace(config, tracking=tracking)
    run = RunFolder(str(tmp_path / "small"))
    job = start_or_continue(run, config, [])
    assert job.identity is not None
    away = Tracker(dataclasses.replace(job.identity, uri="http://127.0.0.1:9"), tmp_path / "lost-machine")
    train_alone(config, tmp_path, away)
    away.close(None, timeout=0.1)
    assert run.checkpoint_steps() == [1, 2]
    write_record(run, EvaluationRecord(scores={2: 50.0}, metrics={2: metrics_record({"evaluation/miou": 50.0}, 2)}))

    for _ in range(2):  # and once more, which changes nothing
        tracker, evaluation = job.open_tracker(system_metrics=False), job.open_evaluation_tracker()
        assert tracker is not None and evaluation is not None
        assert tracker.close() and evaluation.close(None) and tracker.run_id is not None
        shutil.rmtree(job.spool_folder)
        shutil.rmtree(job.spool_folder.with_name("tracking-evaluation"))
        client = MlflowClient(config.tracking.uri)
        history = {
            key: [(metric.step, metric.value) for metric in client.get_metric_history(tracker.run_id, key)]
            for key in ("train/loss", "evaluation/miou")
        }
        assert [step for step, _ in history["train/loss"]] == [1, 2]
        assert history["train/loss"][1][1] == run.read_state(2)["loss"]
        assert history["evaluation/miou"] == [(2, 50.0)]
