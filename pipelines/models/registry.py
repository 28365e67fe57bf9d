"""Logs a checkpoint as an MLflow model under a run, and registers it.

No function here makes a run active or ends it, because another process may write to the run at the same time.
"""

import contextlib
import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Metric, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

from groupvit.checkpoint import load_state
from groupvit.interop.model_card import UNKNOWN, license_of
from pipelines.models.mlflow_model import DESCRIPTION, saved_model
from pipelines.tracking.errors import one_line
from pipelines.tracking.runs import LICENSE_TAG

MIOU_TAG = "groupvit.miou"
"""MLflow tag of versions: mIoU in percent, the mean over the parts of the benchmark."""
STEP_TAG = "groupvit.step"
"""MLflow tag of models and versions: number of training steps of the weights."""


def log_model_to_mlflow(
    checkpoint_folder: str | Path,
    *,
    run_id: str,
    tracking_uri: str | None,
    name: str = "model",
    registered_name: str | None = None,
    alias: str | None = None,
    step: int | None = None,
    metrics: Mapping[str, float] | None = None,
    license: str | None = None,
) -> str:
    """Logs the model of a checkpoint under an existing run, and registers it if `registered_name` is given.

    A second call for the same run and step logs and registers nothing new. Its metrics and its alias replace the
    earlier ones.

    Args:
        checkpoint_folder: Local folder of the checkpoint.
        run_id: Id of the existing run.
        tracking_uri: MLflow server or database. None: MLFLOW_TRACKING_URI.
        name: Name of the logged model, as in `runs:/RUN/NAME`.
        registered_name: Registered model that receives a version. None: the model is not registered.
        alias: Alias that points to this version from now on. None: no alias.
        step: Number of training steps of the weights. None: unknown.
        metrics: Metrics of an evaluation, like `seen/miou`, in percent. They are logged to the run and the model under
            `evaluation/`. Every mIoU also becomes a tag of the version.
        license: Licence notice of the weights. None: the one in the checkpoint, if any.

    Returns:
        A URI for `mlflow.pyfunc.load_model`: `models:/REGISTERED_NAME/VERSION`, else `models:/MODEL_ID`.

    Raises:
        ValueError: The checkpoint or the run does not exist, or MLflow refuses or cannot be reached.
    """
    logging.getLogger("mlflow").setLevel(logging.WARNING)  # hide its progress messages, and a bar for two local files
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    if alias is not None and registered_name is None:
        raise ValueError(f"alias={alias} needs a registered model: give registered_name")
    notice = license or license_of(load_state(checkpoint_folder))
    tags = {} if step is None else {STEP_TAG: str(step)}
    tags |= {} if notice is None else {LICENSE_TAG: notice[:5000]}
    with one_line(tracking_uri):
        client = MlflowClient(tracking_uri=tracking_uri)
        run = client.get_run(run_id)
        model = _logged_model(client, run, name, step)
        if model is None:
            model = _log(client, run, Path(checkpoint_folder), name, step, tags)
        if metrics:
            _log_metrics(client, run_id, model, metrics, step or 0)
        if registered_name is None:
            return f"models:/{model.model_id}"
        version = _version(client, model, registered_name, notice)
        tags |= {f"groupvit.{key}": f"{value:.2f}" for key, value in (metrics or {}).items() if _is_miou(key)}
        for key, value in tags.items():
            client.set_model_version_tag(registered_name, version.version, key, value)
        if alias is not None:
            client.set_registered_model_alias(registered_name, alias, version.version)
        return f"models:/{registered_name}/{version.version}"


def registered_miou(name: str, alias: str, tracking_uri: str | None) -> float | None:
    """Returns the mIoU in percent of the version that the alias points to. None: no such version, or no mIoU.

    Raises ValueError if MLflow cannot be reached.
    """
    with one_line(tracking_uri):
        try:
            version = MlflowClient(tracking_uri=tracking_uri).get_model_version_by_alias(name, alias)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise
    found = version.tags.get(MIOU_TAG)
    return None if found is None else float(found)


def _logged_model(client: MlflowClient, run: Run, name: str, step: int | None) -> LoggedModel | None:
    """Returns the complete model of the run and step, or None."""
    query = f"source_run_id = '{run.info.run_id}'"
    query += "" if step is None else f" AND tags.`{STEP_TAG}` = '{step}'"
    for model in client.search_logged_models([run.info.experiment_id], query):
        without_step = STEP_TAG not in model.tags
        if model.name == name and model.status == LoggedModelStatus.READY and without_step == (step is None):
            return model
    return None


def _log(
    client: MlflowClient, run: Run, checkpoint: Path, name: str, step: int | None, tags: Mapping[str, str]
) -> LoggedModel:
    """Uploads the model's folder. A model with an incomplete upload is marked as failed."""
    run_id = run.info.run_id
    params = {} if step is None else {"step": str(step)}
    model = client.create_logged_model(
        run.info.experiment_id, name=name, source_run_id=run_id, tags=dict(tags), params=params
    )
    try:
        record = Model(run_id=run_id, model_id=model.model_id, artifact_path=model.artifact_location)
        with saved_model(checkpoint, record, tags) as folder:
            client.log_model_artifacts(model.model_id, str(folder))
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=step or 0)])
        return client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    except BaseException:
        with contextlib.suppress(MlflowException):  # the server itself may have failed
            client.finalize_logged_model(model.model_id, LoggedModelStatus.FAILED)
        raise


def _log_metrics(
    client: MlflowClient, run_id: str, model: LoggedModel, metrics: Mapping[str, float], step: int
) -> None:
    """Links metrics of the run to the model. Existing metrics of the run are sent with the time that they have there,
    so that MLflow recognises them."""
    now = time.time_ns() // 1_000_000
    linked = []
    for name, value in metrics.items():
        key = f"evaluation/{name}"
        known = {(point.step, point.value): point.timestamp for point in client.get_metric_history(run_id, key)}
        linked.append(Metric(key, value, known.get((step, value), now), step, model_id=model.model_id))
    client.log_batch(run_id, metrics=linked)


def _version(client: MlflowClient, model: LoggedModel, name: str, notice: str | None) -> ModelVersion:
    """Finds the version of the registered model that holds this model, or creates it."""
    try:
        client.create_registered_model(name, description="GroupViT: segments images by words.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    for version in client.search_model_versions(f"run_id = '{model.source_run_id}'"):
        if version.name == name and version.source == model.artifact_location:
            return version
    version = client.create_model_version(
        name,
        source=model.artifact_location,  # models:/ID would be resolved at the process's own tracking URI
        run_id=model.source_run_id,
        model_id=model.model_id,
    )
    # Markdown could hide parts of the notice; a tag shows all of it.
    license = UNKNOWN if notice is None else f"see the tag `{LICENSE_TAG}`"
    client.update_model_version(
        name, version.version, DESCRIPTION.format(name=name, version=version.version, license=license)
    )
    # A server adds the registered version to the model's tags. With direct access to a database, nothing does.
    registered = json.loads(client.get_logged_model(model.model_id).tags.get(MLFLOW_MODEL_VERSIONS, "[]"))
    if not any(entry["name"] == name and str(entry["version"]) == str(version.version) for entry in registered):
        registered.append({"name": name, "version": version.version})
        client.set_logged_model_tags(model.model_id, {MLFLOW_MODEL_VERSIONS: json.dumps(registered)})
    return version


def _is_miou(metric: str) -> bool:
    return metric.rpartition("/")[2] == "miou"
