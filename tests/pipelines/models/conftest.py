"""One checkpoint for the tests of models."""

from pathlib import Path

import pytest
import torch

from groupvit.checkpoint import load_state
from groupvit.checkpoint_files import OPTIMIZER_FILE, write_state
from pipelines.models.registry import log_model_to_mlflow
from tests.support.mlflow_server import MlflowServer
from tests.support.new_run import new_run
from tests.support.running_app import portrait, save_checkpoint


@pytest.fixture(scope="package")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "step-00000007")
    torch.save({"state": {}}, folder / OPTIMIZER_FILE)
    state = load_state(folder)
    state["config"]["tracking"] = {"uri": "http://me:hunter2@host/"}
    write_state(folder, state | {"step": 7})
    return folder


@pytest.fixture(scope="package")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "photo.png"
    portrait().save(path)
    return path


@pytest.fixture(scope="package")
def best(server: MlflowServer, checkpoint: Path) -> str:
    """The run whose model is registered as segmenter@best."""
    run_id = new_run(server.uri)
    log_model_to_mlflow(
        checkpoint,
        run_id=run_id,
        tracking_uri=server.uri,
        registered_name="segmenter",
        alias="best",
        step=7,
        metrics={"seen/miou": 41.256, "seen/crf_miou": 12.0},
    )
    return run_id
