"""Object storage and MLflow: reached, written to, and left as they were found."""

import contextlib
import dataclasses
import email.utils
import os
import time
import uuid
from urllib.parse import urlsplit

import requests

from pipelines import storage
from pipelines.console.findings import Finding
from pipelines.local.writable import check_writable
from pipelines.tracking.errors import refusal_of
from pipelines.tracking.places import artifacts_beside, check_database, database_path
from pipelines.tracking.runs import experiment_id, retry_few_requests

EXPERIMENT = "groupvit-doctor"
"""MLflow experiment of the run that is created and deleted."""
SLOW_STORE = 20e6
"""Bytes per second below which a store is called slow: less than 700 images/s."""
BROKEN_SKEW, LARGE_SKEW = 900.0, 60.0
"""Difference in seconds from a store's clock: S3 refuses requests from 15 minutes on."""
_SECONDS_TO_ANSWER = 10.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoreSpeed:
    """How fast a store took and gave one object."""

    seconds: float
    """Of the smallest request."""
    written: float
    """Bytes per second."""
    read: float
    """Bytes per second."""


def measure_store(uri: str, num_bytes: int) -> StoreSpeed:
    """Write, read, compare and delete an object in `uri`. ValueError or OSError, in one line, if this fails."""
    check_writable(uri, "store")
    probe, content = storage.join(uri, f".groupvit-doctor-{uuid.uuid4().hex}"), os.urandom(num_bytes)
    try:
        start = time.perf_counter()
        storage.write_bytes(probe, content)
        written = time.perf_counter()
        found = storage.read_bytes(probe)
        read = time.perf_counter()
        storage.exists(probe)
        asked = time.perf_counter()
    finally:
        with contextlib.suppress(OSError):  # the error that matters is that of the work
            storage.remove_file(probe)
    if found != content:
        raise ValueError(f"{uri}: an object came back with other bytes than it was written with: check the store")
    return StoreSpeed(
        seconds=asked - read, written=num_bytes / (written - start), read=num_bytes / max(read - written, 1e-9)
    )


def store(node: str, speed: StoreSpeed) -> Finding:
    """Judge the speed of a store, as seen from a machine."""
    text = f"{1000 * speed.seconds:,.0f} ms a request, {speed.written / 1e6:,.0f} MB/s written, "
    text += f"{speed.read / 1e6:,.0f} MB/s read"
    if speed.read >= SLOW_STORE:
        return Finding(check="store", node=node, status="OK", text=text)
    fix = "an image is 0.03 MB, and all machines share the store: take one in the same region or network"
    return Finding(check="store", node=node, status="warning", text=text, fix=fix)


def store_clock() -> list[Finding]:
    """Compare this machine's clock with that of the object store. Empty if it does not tell its own."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "https://s3.amazonaws.com"
    try:
        before = time.time()
        answer = requests.head(endpoint, timeout=_SECONDS_TO_ANSWER, allow_redirects=False)
        middle = (before + time.time()) / 2
        theirs = email.utils.parsedate_to_datetime(answer.headers["Date"]).timestamp()
    except (requests.RequestException, KeyError, ValueError):
        return []  # whether the store can be used is another check
    skew = max(abs(middle - theirs - 0.5) - 0.5, 0.0)  # its answer has whole seconds
    text = f"{skew:.0f} s from that of {urlsplit(endpoint).hostname}"
    if skew < LARGE_SKEW:
        return [Finding(check="clock", status="OK", text=text)]
    fix = "let chrony or systemd-timesyncd set it: S3 refuses requests from 15 minutes on"
    return [Finding(check="clock", status="fault" if skew >= BROKEN_SKEW else "warning", text=text, fix=fix)]


def tracking(uri: str) -> Finding:
    """Create a run in MLflow, log to it, read it, and delete it. A database that is not there is not made."""
    path = database_path(uri)
    try:
        check_database(uri, "tracking")
        if path is not None and not os.path.exists(path):
            return Finding(check="mlflow", status="OK", text=f"{uri} is not there yet, and can be made")
        seconds = _write_and_delete_run(uri)
    except Exception as error:  # MLflow raises errors of many kinds
        reason = refusal_of(error, uri)
        text = f"{uri}: {' '.join(str(error).split())[:300]}" if reason is None else reason
        fix = "start the server, or give its address" if reason is None and path is None else ""
        return Finding(check="mlflow", status="fault", text=text, fix=fix)
    return Finding(check="mlflow", status="OK", text=f"{uri} took a run, and deleted it, in {seconds:.2f} s")


def _write_and_delete_run(uri: str) -> float:
    """Return the seconds that it took."""
    retry_few_requests()
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", f"{_SECONDS_TO_ANSWER:g}")
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    start = time.perf_counter()
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None and found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    number = experiment_id(client, EXPERIMENT, artifacts_beside(uri))
    run = client.create_run(number, run_name="probe")
    try:
        client.log_metric(run.info.run_id, "probe", 1.0)
        if client.get_run(run.info.run_id).data.metrics != {"probe": 1.0}:
            raise ValueError("it does not give back the metric that it was given")
    finally:
        client.delete_run(run.info.run_id)
        client.delete_experiment(number)
    return time.perf_counter() - start
