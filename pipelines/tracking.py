"""MLflow tracking that never raises into training and never blocks a step.

Callers only put records on a queue. One background thread appends them to a spool file (jsonl), sends the spool's
unsent part in order, and remembers how far it got. While the server is away the spool grows; it is replayed when the
server is back, by this process or by the next one that continues the run. Records carry their time stamp, so that
sending one twice is harmless. One job is one MLflow run: the run is looked up by a tag that holds the job's id, so a
restarted job finds it again.
"""

import dataclasses
import json
import logging
import os
import queue
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.provenance import redact
from pipelines.spool import Record, Spool
from pipelines.system_metrics import SystemMetrics

JOB_TAG = "groupvit.job_id"
LAST_STEP_TAG = "groupvit.last_training_step"
_RETRY_SECONDS = 2.0
_MOST_TIME_SENDING = 0.05
"""Of the time: a database needs tens of milliseconds for a request, however few metrics are in it, and takes them from
the training."""
_LONGEST_PAUSE = 10.0
"""Seconds."""

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunIdentity:
    """Which MLflow run a tracker writes to, and what is recorded of it once."""

    uri: str
    """Tracking URI."""
    experiment: str
    run_name: str
    job_id: str
    """Unique per job, the same after a restart."""
    artifact_location: str | None = None
    """Where a new experiment on a database keeps artifacts; None: the server decides."""
    params: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tags: Mapping[str, str] = dataclasses.field(default_factory=dict)
    datasets: tuple["TrackedDataset", ...] = ()
    makes_run: bool = True
    """False: wait until another process of the job has made and described the run, so that there are never two."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrackedDataset:
    """A training data set as MLflow lists it."""

    name: str
    uri: str
    digest: str
    num_samples: int


class Tracker:
    """The background writer of one run. `run_id` is None until the server was reached for the first time."""

    def __init__(self, identity: RunIdentity, spool_folder: Path, system_metrics_every_n_seconds: float | None = None):
        self.run_id: str | None = None
        self._identity = identity
        self._spool = Spool(spool_folder)
        self._sender = _Sender(identity)
        self._queue: queue.SimpleQueue[Record] = queue.SimpleQueue()
        self._system_metrics_every = system_metrics_every_n_seconds
        self._closing = threading.Event()
        self._deadline = float("inf")
        self._warned: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
        self._thread.start()

    def log_metrics(self, metrics: Mapping[str, float], step: int, *, training: bool = False) -> None:
        """Queue `metrics` of `step`. `training=True`: steps that were already recorded before a restart are dropped,
        so a continued run shows each step once."""
        self._queue.put({"metrics": dict(metrics), "step": step, "time": _now_ms(), "training": training})

    def log_artifact(self, local_path: str | Path, folder: str | None = None) -> None:
        """Queue the upload of a file or folder, which must stay where it is until it was sent."""
        self._queue.put({"artifact": os.path.abspath(local_path), "folder": folder})

    def log_picture(self, local_path: str | Path, key: str, step: int) -> None:
        """Queue a picture that the server shows by step under `key`; the file must stay until it was sent."""
        self._queue.put({"picture": os.path.abspath(local_path), "key": key, "step": step, "time": _now_ms()})

    def log_text(self, text: str, artifact_file: str) -> None:
        """Queue a small text artifact, e.g. the config. Credentials in URIs are removed."""
        self._queue.put({"text": redact(text), "file": artifact_file})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Queue tags of the run, in place of what they were."""
        self._queue.put({"tags": {name: redact(value) for name, value in tags.items()}})

    def close(self, status: str | None = "FINISHED", timeout: float = 30.0) -> bool:
        """Send what is left, for at most `timeout` seconds. True: all was sent; else the rest stays in the spool.

        `status` is the run's end (FINISHED, FAILED); None: it goes on elsewhere.
        """
        if status is not None:
            self._queue.put({"status": status, "time": _now_ms()})
        self._deadline = time.monotonic() + timeout
        self._closing.set()
        self._thread.join(timeout + _RETRY_SECONDS)
        sent = not self._thread.is_alive() and self._spool.num_unsent_bytes() == 0
        if not sent:
            logger.warning("tracking: the server was not reached; what is unsent stays in %s", self._spool.path)
        return sent

    def _run(self) -> None:
        system_metrics = SystemMetrics(self._system_metrics_every)
        send_at = 0.0
        while True:
            closing = self._closing.is_set()
            try:
                self._take_queue(wait=0.0 if closing else 0.5)
                self._spool.append(system_metrics.due())
                if time.monotonic() >= send_at or closing:
                    start = time.monotonic()
                    self._send()
                    took = time.monotonic() - start
                    send_at = start + min(took / _MOST_TIME_SENDING, _LONGEST_PAUSE)
            except Exception as error:
                if not isinstance(error, _NoRunYetError):
                    self._warn(error)
                send_at = time.monotonic() + _RETRY_SECONDS
                if closing:
                    time.sleep(0.2)
            if closing and self._queue.empty() and self._spool.num_unsent_bytes() == 0:
                return
            if time.monotonic() > self._deadline:
                return

    def _take_queue(self, wait: float) -> None:
        records = []
        try:
            records.append(self._queue.get(timeout=wait) if wait else self._queue.get_nowait())
            while True:
                records.append(self._queue.get_nowait())
        except queue.Empty:
            self._spool.append(records)

    def _send(self) -> None:
        self._sender.connect()
        self.run_id = self._sender.run_id
        for batch, end in self._spool.unsent_batches():
            if time.monotonic() > self._deadline:
                return
            self._sender.send(batch)
            self._spool.mark_sent(end)

    def _warn(self, error: Exception) -> None:
        if type(error).__name__ not in self._warned:
            self._warned.add(type(error).__name__)
            logger.warning("tracking: %s (will be tried again)", redact(str(error).partition("\n")[0])[:300])


class _NoRunYetError(Exception):
    """The process that makes the job's run has not done so yet."""


class _Sender:
    """Speaks to MLflow. Methods raise while the server is away; records the server refuses are dropped with a
    warning."""

    def __init__(self, identity: RunIdentity):
        self._identity = identity
        self._client: Any = None
        self._last_training_step = -1
        self.run_id: str = ""

    def connect(self) -> None:
        """Find or make the job's run; once per process."""
        if self._client is not None:
            return
        # MLflow's own retries take minutes per request; ours go on anyhow.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=self._identity.uri)
        run = find_run(client, self._identity.experiment, self._identity.job_id)
        if run is None and not self._identity.makes_run:
            raise _NoRunYetError
        if run is None:
            run = client.create_run(
                _experiment_id(client, self._identity),
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
        """Send a batch; metrics of many steps go as one request."""
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
            # Only who trains knows its last step: beside it, evaluations are sent by a process that does not.
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
        # A param never changes in MLflow: those of the first start stay; the config artifact shows the latest.
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
            if error.error_code not in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS"):
                raise
            logger.warning("tracking: refused by the server, dropped: %s", redact(str(error))[:300])


def find_run(client: Any, experiment: str, job_id: str) -> Any:
    """The MLflow run of a job, or None."""
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return None
    runs = client.search_runs([found.experiment_id], f"tags.`{JOB_TAG}` = '{job_id}'", max_results=1)
    return runs[0] if runs else None


def _experiment_id(client: Any, identity: RunIdentity) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(identity.experiment)
    if found is not None:
        return found.experiment_id
    try:
        return client.create_experiment(identity.experiment, artifact_location=identity.artifact_location)
    except MlflowException:  # another job made it in between
        found = client.get_experiment_by_name(identity.experiment)
        if found is None:
            raise
        return found.experiment_id


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
