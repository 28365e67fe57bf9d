"""Registers a checkpoint as a model in MLflow.

    groupvit register --checkpoint runs/demo --name groupvit --tracking-uri http://localhost:5000

Everyone who can reach the server can then load it: `mlflow.pyfunc.load_model("models:/groupvit@best")`.
"""

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from groupvit.checkpoint import load_state
from groupvit.checkpoint_files import MODEL_FILE
from groupvit.interop.model_card import license_of
from pipelines.experiments.config import TrackingConfig
from pipelines.models.registry import log_model_to_mlflow
from pipelines.provenance import code_version, redact
from pipelines.runs.checkpoints import local_checkpoint
from pipelines.tracking.errors import one_line
from pipelines.tracking.places import artifacts_beside, check_database
from pipelines.tracking.runs import experiment_id, retry_few_requests

WEIGHTS_TAG = "groupvit.weights_sha256"
"""MLflow tag of runs that hold only a registered checkpoint: the SHA-256 of its weights."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegisterConfig:
    """Registers a checkpoint as a model in MLflow. A second call with the same weights registers nothing new."""

    checkpoint: str
    """Folder of a checkpoint, or of a run (its newest checkpoint is used): a local path or s3:// URI."""
    name: str
    """Registered model that receives a version. It is created if it does not exist."""
    alias: str | None = "best"
    """Alias that points to this version from now on, as in models:/NAME@best. None: no alias."""
    mlflow_run: str | None = None
    """Id of the MLflow run of the model, as reported by `pretrain`. None: a run is created for it."""
    tracking_uri: str | None = None
    """MLflow server or database. None: MLFLOW_TRACKING_URI."""


def register(config: RegisterConfig) -> dict[str, Any]:
    """Registers the model, prints its URI, and returns a summary. Raises ValueError for invalid arguments."""
    uri = config.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise ValueError(
            "tracking_uri is not given and MLFLOW_TRACKING_URI is not set: give a server or database, like "
            "http://localhost:5000 or sqlite:///runs/mlflow.db"
        )
    check_database(uri, "tracking_uri")
    retry_few_requests()
    with local_checkpoint(config.checkpoint) as folder:
        state = load_state(folder)
        step, notice = state.get("step"), license_of(state)
        with _run(config, uri, folder) as run_id:
            model = log_model_to_mlflow(
                folder, run_id=run_id, tracking_uri=uri, registered_name=config.name, alias=config.alias, step=step
            )
    print(f"{model}" + ("" if config.alias is None else f", now models:/{config.name}@{config.alias}"))
    print(f"licence of the weights: {notice or 'none given'}")
    return {
        "model": model,
        "name": config.name,
        "version": model.rpartition("/")[2],
        "alias": config.alias,
        "step": step,
        "mlflow_run": run_id,
        "tracking_uri": redact(uri),
        "license": notice,
    }


@contextlib.contextmanager
def _run(config: RegisterConfig, uri: str, folder: Path) -> Iterator[str]:
    """Yields the id of the given run. Without one, yields the id of a run for only these weights, and ends that run."""
    if config.mlflow_run is not None:
        yield config.mlflow_run
        return
    with one_line(uri):
        client = MlflowClient(tracking_uri=uri)
        run_id = _run_of(client, uri, folder, config.checkpoint)
    status = "FAILED"
    try:
        yield run_id
        status = "FINISHED"
    finally:
        with one_line(uri):
            client.set_terminated(run_id, status)


def _run_of(client: MlflowClient, uri: str, folder: Path, checkpoint: str) -> str:
    """Finds the run that holds only these weights, or creates it. Returns its id."""
    with (folder / MODEL_FILE).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    experiment = experiment_id(client, TrackingConfig.experiment, artifacts_beside(uri))
    found = client.search_runs([experiment], f"tags.`{WEIGHTS_TAG}` = '{digest}'", max_results=1)
    if found:
        return found[0].info.run_id
    tags = {
        WEIGHTS_TAG: digest,
        "mlflow.source.name": "groupvit register",
        "mlflow.source.git.commit": code_version(),
    }
    run_name = f"register {checkpoint.rstrip('/').rpartition('/')[2]}"
    return client.create_run(experiment, run_name=run_name, tags=tags).info.run_id
