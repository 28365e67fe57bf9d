"""MLflow tracking that never raises into training and never blocks a step.

Callers only put records on a queue. One background thread appends them to a spool file (jsonl), sends the unsent part
of the spool in order, and stores how much it has sent. While the server is away, the spool grows. When the server is
back, this process, or the next one that resumes the run, sends it. Records carry their time stamp, so sending one
twice is harmless. Each job has one MLflow run. A tag holds the job's id, so a restarted job finds its run again.

A spool is on one machine, which may be lost. A checkpoint therefore keeps the training metrics that were unsent when
it was saved (`unsent_training_metrics`), and a process that resumes from it sends them first (`log_records`).
"""

import logging
import os
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipelines.provenance import redact
from pipelines.tracking.errors import refusal_of
from pipelines.tracking.records import Record, is_metrics
from pipelines.tracking.runs import NoRunYetError, RunIdentity, Sender
from pipelines.tracking.spool import Spool
from pipelines.tracking.system_metrics import SystemMetrics

_RETRY_SECONDS = 2.0
_MAX_SENDING_SHARE = 0.05
"""Largest share of the time spent sending. Each request takes a database tens of milliseconds, whatever its size, and
slows the training."""
_LONGEST_PAUSE = 10.0
"""Largest number of seconds between two attempts to send."""

logger = logging.getLogger(__name__)


class Tracker:
    """The background writer of one run. `run_id` is None until the server has been reached once."""

    def __init__(self, identity: RunIdentity, spool_folder: Path, system_metrics_every_n_seconds: float | None = None):
        self.run_id: str | None = None
        self._identity = identity
        self._spool = Spool(spool_folder)
        self._sender = Sender(identity)
        self._queue: queue.SimpleQueue[Record] = queue.SimpleQueue()
        self._system_metrics_every = system_metrics_every_n_seconds
        self._closing = threading.Event()
        self._deadline = float("inf")
        self._warned: set[str] = set()
        self._refusal: str | None = None
        """Reason why MLflow refused the last records, or None."""
        self._lock = threading.Lock()
        self._unsent = [record for batch, _ in self._spool.unsent_batches() for record in batch if _is_training(record)]
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
        self._thread.start()

    def log_metrics(self, metrics: Mapping[str, float], step: int, *, training: bool = False) -> None:
        """Queues `metrics` of `step`.

        With `training=True`, steps already recorded before a restart are dropped, so a resumed run shows each step
        once.
        """
        self.log_records([metrics_record(metrics, step, training=training)])

    def log_records(self, records: Sequence[Record]) -> None:
        """Queues records of metrics, e.g. those that a process on a lost machine may not have sent. Skips others."""
        for record in records:
            if not is_metrics(record, "a record of metrics"):
                continue
            if _is_training(record):
                with self._lock:
                    if self._unsent and record["step"] <= self._unsent[-1]["step"]:
                        continue  # it is in the spool already, or was sent
                    self._unsent.append(record)
            self._queue.put(record)

    def unsent_training_metrics(self) -> list[Record]:
        """Returns the metrics logged with `training=True` that the server has not confirmed, in order."""
        with self._lock:
            return list(self._unsent)

    def log_artifact(self, local_path: str | Path, folder: str | None = None) -> None:
        """Queues the upload of a file or folder. It must stay in place until it is sent."""
        self._queue.put({"artifact": os.path.abspath(local_path), "folder": folder})

    def log_picture(self, local_path: str | Path, key: str, step: int) -> None:
        """Queues a picture that the server shows by step under `key`. The file must stay in place until it is sent."""
        self._queue.put({"picture": os.path.abspath(local_path), "key": key, "step": step, "time": _now_ms()})

    def log_text(self, text: str, artifact_file: str) -> None:
        """Queues a small text artifact, e.g. the config. Credentials in URIs are removed."""
        self._queue.put({"text": redact(text), "file": artifact_file})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Queues tags of the run. They replace earlier values."""
        self._queue.put({"tags": {name: redact(value) for name, value in tags.items()}})

    def close(self, status: str | None = "FINISHED", timeout: float = 30.0) -> bool:
        """Sends the remaining records, for at most `timeout` seconds. Unsent records stay in the spool.

        Returns True if all records were sent. `status` is the run's final status (FINISHED, FAILED); None: the run
        continues elsewhere.
        """
        if status is not None:
            self._queue.put({"status": status, "time": _now_ms()})
        self._deadline = time.monotonic() + timeout
        self._closing.set()
        self._thread.join(timeout + _RETRY_SECONDS)
        sent = not self._thread.is_alive() and self._spool.num_unsent_bytes() == 0
        if not sent:
            reason = self._refusal or "the server was not reached"
            if lost := self._spool.num_unwritten():
                reason = f"{lost} records are lost because the disk is full"
            logger.warning("tracking: %s; what is unsent stays in %s", reason, self._spool.path)
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
                    send_at = start + min(took / _MAX_SENDING_SHARE, _LONGEST_PAUSE)
            except Exception as error:
                self._refusal = refusal_of(error, self._identity.uri)
                if closing and self._refusal is not None:  # it would be refused until the deadline
                    return
                if not isinstance(error, NoRunYetError):
                    self._warn(error)
                send_at = time.monotonic() + (_RETRY_SECONDS if self._refusal is None else _LONGEST_PAUSE)
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
        self._refusal = None
        self.run_id = self._sender.run_id
        for batch, end in self._spool.unsent_batches():
            if time.monotonic() > self._deadline:
                return
            self._sender.send(batch)
            self._spool.mark_sent(end)
            with self._lock:
                del self._unsent[: sum(map(_is_training, batch))]

    def _warn(self, error: Exception) -> None:
        kind = self._refusal or type(error).__name__
        if kind not in self._warned:
            self._warned.add(kind)
            shown = self._refusal or f"{redact(str(error).partition(chr(10))[0])[:300]} (will be tried again)"
            logger.warning("tracking: %s", shown)


def metrics_record(metrics: Mapping[str, float], step: int, *, training: bool = False) -> Record:
    """Returns the record that `Tracker.log_metrics` queues, JSON-safe and with the current time."""
    return {"metrics": dict(metrics), "step": step, "time": _now_ms(), "training": training}


def _is_training(record: Record) -> bool:
    return record.get("training", False)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
