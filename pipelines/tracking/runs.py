"""Finds or creates the MLflow run of a job, describes it, and writes to it. Waiting and retries are in the tracker.

Each job has one run. A tag holds the job's id, so a restarted job finds its run again.
"""

import contextlib
import dataclasses
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.provenance import redact
from pipelines.tracking.errors import refusal_of
from pipelines.tracking.spool import Record

JOB_TAG = "groupvit.job_id"
LICENSE_TAG = "groupvit.license"
"""MLflow tag with the licence notice of imported weights."""
LAST_STEP_TAG = "groupvit.last_training_step"

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunIdentity:
    """The MLflow run that a tracker writes to, and its description, which is recorded once."""

    uri: str
    """Tracking URI."""
    experiment: str
    run_name: str
    job_id: str
    """Unique id of the job, the same after a restart."""
    artifact_location: str | None = None
    """Artifact location of a new experiment in a database. None: the server decides."""
    params: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tags: Mapping[str, str] = dataclasses.field(default_factory=dict)
    datasets: tuple["TrackedDataset", ...] = ()
    makes_run: bool = True
    """Whether to create the run. False: wait until another process of the job has created and described it, so that
    there are never two."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrackedDataset:
    """A training data set, as listed by MLflow."""

    name: str
    uri: str
    digest: str
    num_samples: int


def is_reached(identity: RunIdentity) -> bool:
    """Whether MLflow answers. Raises a ValueError of one line if it refuses."""
    with _refusals_told(identity.uri):
        _client(identity).get_experiment_by_name(identity.experiment)
        return True
    return False


def make_run(identity: RunIdentity) -> None:
    """Creates and describes the job's run before there is anything to record, if MLflow can be reached.

    Raises a ValueError of one line if MLflow refuses: it would refuse later records, too.
    """
    with _refusals_told(identity.uri):
        Sender(identity).connect()


@contextlib.contextmanager
def _refusals_told(uri: str) -> Iterator[None]:
    """Raises ValueError if MLflow refuses something inside the context. Ignores a server that is away."""
    try:
        yield
    except Exception as error:
        if (reason := refusal_of(error, uri)) is not None:
            raise ValueError(f"tracking.uri={reason}") from error


def retry_few_requests() -> None:
    """Lets MLflow retry a request twice in this process: its default of 7 takes minutes, while a user waits."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")


def _client(identity: RunIdentity) -> Any:
    # MLflow's own retries take minutes per request, and the tracker retries anyway.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)  # it logs every table that it creates
    return MlflowClient(tracking_uri=identity.uri)


class NoRunYetError(Exception):
    """The process that creates the job's run has not created it yet."""


class Sender:
    """Sends records to MLflow. Methods raise while the server is away. Refused records are dropped with a warning."""

    def __init__(self, identity: RunIdentity):
        self._identity = identity
        self._client: Any = None
        self._last_training_step = -1
        self.run_id: str = ""

    def connect(self) -> None:
        """Finds or creates the job's run, once per process."""
        if self._client is not None:
            return
        client = _client(self._identity)
        run = find_run(client, self._identity.experiment, self._identity.job_id)
        if run is None and not self._identity.makes_run:
            raise NoRunYetError
        if run is None:
            run = client.create_run(
                experiment_id(client, self._identity.experiment, self._identity.artifact_location),
                run_name=self._identity.run_name,
                tags={JOB_TAG: self._identity.job_id},
            )
        self.run_id = run.info.run_id
        self._last_training_step = int(run.data.tags.get(LAST_STEP_TAG, -1))
        if self._identity.makes_run:
            client.update_run(self.run_id, status="RUNNING")
            self._describe(client, logged=run.data.params)
        self._client = client

    def send(self, records: list[Record]) -> None:
        """Sends a batch of records. Metrics of many steps are sent in one request."""
        from mlflow.entities import Metric, RunTag

        last_step = self._last_training_step
        metrics = []
        for record in records:
            if "metrics" not in record or (record["training"] and record["step"] <= last_step):
                continue
            if record["training"]:
                last_step = record["step"]
            metrics += [
                Metric(key, float(value), record["time"], record["step"]) for key, value in record["metrics"].items()
            ]
        if metrics:
            # Only the training process knows its last step. The process that sends evaluations must not set this tag.
            tags = [RunTag(LAST_STEP_TAG, str(last_step))] if last_step > self._last_training_step else []
            self._tolerate_refusal(self._client.log_batch, self.run_id, metrics=metrics, tags=tags)
            self._last_training_step = last_step
        for record in records:
            if "artifact" in record:
                self._send_artifact(Path(record["artifact"]), record["folder"])
            elif "picture" in record:
                self._send_picture(record)
            elif "text" in record:
                self._tolerate_refusal(self._client.log_text, self.run_id, record["text"], record["file"])
            elif "tags" in record:
                tags = [RunTag(name, value) for name, value in record["tags"].items()]
                self._tolerate_refusal(self._client.log_batch, self.run_id, tags=tags)
            elif "status" in record:
                self._client.set_terminated(self.run_id, record["status"], record["time"])

    def _describe(self, client: Any, logged: Mapping[str, str]) -> None:
        from mlflow.entities import Dataset, DatasetInput, Param, RunTag

        identity = self._identity
        # MLflow does not change a param: those of the first start stay. The config artifact shows the latest values.
        params = [Param(key, redact(str(value))[:6000]) for key, value in identity.params.items() if key not in logged]
        tags = [RunTag(key, redact(value)) for key, value in identity.tags.items()]
        for start in range(0, len(params), 100):
            self._tolerate_refusal(client.log_batch, self.run_id, params=params[start : start + 100])
        self._tolerate_refusal(client.log_batch, self.run_id, tags=tags)
        inputs = [
            DatasetInput(
                Dataset(
                    name=dataset.name,
                    digest=dataset.digest[:36],  # the width of MLflow's column
                    source_type="uri",
                    source=json.dumps({"uri": redact(dataset.uri)}),
                    profile=json.dumps({"num_samples": dataset.num_samples, "digest": dataset.digest}),
                )
            )
            for dataset in identity.datasets
        ]
        if inputs:
            self._tolerate_refusal(client.log_inputs, self.run_id, datasets=inputs)

    def _send_artifact(self, path: Path, folder: str | None) -> None:
        if not path.exists():
            logger.warning("tracking: %s is gone before it was sent", path)
        elif path.is_dir():
            self._tolerate_refusal(self._client.log_artifacts, self.run_id, str(path), folder)
        else:
            self._tolerate_refusal(self._client.log_artifact, self.run_id, str(path), folder)

    def _send_picture(self, record: Record) -> None:
        from PIL import Image

        if not Path(record["picture"]).exists():
            logger.warning("tracking: %s is gone before it was sent", record["picture"])
            return
        with Image.open(record["picture"]) as picture:
            self._tolerate_refusal(
                self._client.log_image,
                self.run_id,
                picture,
                key=record["key"],
                step=record["step"],
                timestamp=record["time"],
                synchronous=True,
            )

    def _tolerate_refusal(self, call: Any, *args: Any, **kwargs: Any) -> None:
        from mlflow.exceptions import MlflowException

        try:
            call(*args, **kwargs)
        except MlflowException as error:
            one_record = error.error_code in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS")
            if not one_record or refusal_of(error, self._identity.uri) is not None:
                raise
            logger.warning("tracking: refused by the server, dropped: %s", redact(str(error))[:300])


def find_run(client: Any, experiment: str, job_id: str) -> Any:
    """Returns the MLflow run of a job, or None."""
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return None
    runs = client.search_runs([found.experiment_id], f"tags.`{JOB_TAG}` = '{job_id}'", max_results=1)
    return runs[0] if runs else None


def experiment_id(client: Any, name: str, artifact_location: str | None) -> str:
    """Finds the experiment of that name, or creates it. Returns its id."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    try:
        return client.create_experiment(name, artifact_location=artifact_location)
    except MlflowException:  # another job created it meanwhile
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return found.experiment_id
