"""The folder of one run, on disk or in object storage.

    RUNS/NAME/run.json                    the job's id, the config it was started with, data set digests, precision
    RUNS/NAME/checkpoints/step-00001000/  a checkpoint: model.safetensors, optimizer.pt, state.json
    RUNS/NAME/evaluations.json            scores of the checkpoints evaluated while training (evaluations.py)
    RUNS/NAME/reservation.json            what Ray reserves for an elastic run (training/reservation.py)
    RUNS/NAME/tracking/                   metrics on their way to MLflow

A checkpoint is complete once it has a state.json. On disk, a rename makes the whole folder appear at once. Object
storage has no rename, so state.json is uploaded last.
"""

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyarrow import fs

from groupvit.checkpoint_files import STATE_FILE, CorruptedError, parse_state
from groupvit.config import Precision
from pipelines import documents, storage
from pipelines.runs.contents import RunDescription, TrainingState

JOB_ID = "job_id"
"""Key in a checkpoint's state: the job that wrote it, as in run.json. Checkpoints of earlier versions lack it."""
_MAX_STATE_BYTES = 2**28  # it may hold the metrics of days without MLflow
_GIVE_ANOTHER = "start under another --training.run-name, or restore the file"
_CHECKPOINT = re.compile(r"step-([0-9]{8,15})")
UNSENT_METRICS = "unsent_metrics"
"""Key in a checkpoint's state: the metrics up to its step that MLflow had not confirmed, as spool records."""


def recorded_precision(description: Mapping[str, Any] | None) -> Precision | None:
    """Returns the precision in a run's description. None: the run has not started, or no worker has chosen one yet."""
    if description is None:
        return None
    # Runs of earlier versions recorded only the requested precision, which was never `auto`.
    recorded = description.get("precision", description.get("fixed", {}).get("training.precision"))
    return None if recorded == "auto" else recorded


@contextmanager
def downloaded(uri: str, names: Iterable[str]) -> Iterator[Path]:
    """Yields a temporary folder with these files of a remote folder. Errors about a file name the remote one."""
    with tempfile.TemporaryDirectory() as temporary:
        for name in names:
            storage.copy(storage.join(uri, name), f"{temporary}/{name}")
        try:
            yield Path(temporary)
        except ValueError as error:
            if type(error) not in (ValueError, CorruptedError) or temporary not in str(error):
                raise
            raise type(error)(str(error).replace(temporary, uri)) from error


class RunFolder:
    """Reads and writes a run's folder. Cheap to create and to pickle: its only state is the URI."""

    def __init__(self, uri: str) -> None:
        self.uri = storage.absolute(uri).rstrip("/")

    @property
    def is_local(self) -> bool:
        return "://" not in self.uri

    def read_description(self) -> dict[str, Any] | None:
        """Reads run.json. Returns None if the run was never started."""
        try:
            return documents.read(storage.join(self.uri, "run.json"), RunDescription, _GIVE_ANOTHER)
        except FileNotFoundError:
            return None

    def write_description(self, description: dict[str, Any]) -> None:
        content = json.dumps(description, indent=2) + "\n"
        storage.write_bytes(storage.join(self.uri, "run.json"), content.encode())

    def checkpoint_steps(self) -> list[int]:
        """Returns the steps of the complete checkpoints, ascending. Checkpoint n holds the weights after n steps."""
        filesystem, path = storage.resolve(storage.join(self.uri, "checkpoints"))
        selector = fs.FileSelector(path, allow_not_found=True, recursive=True)
        found = storage.retry(lambda: filesystem.get_file_info(selector), self.uri)
        folders = [Path(info.path).parent.name for info in found if info.base_name == STATE_FILE]
        return sorted(int(match[1]) for name in folders if (match := _CHECKPOINT.fullmatch(name)))

    def latest_step(self) -> int:
        """Returns the step of the newest complete checkpoint; 0 without one."""
        return max(self.checkpoint_steps(), default=0)

    def checkpoint_uri(self, step: int) -> str:
        return storage.join(self.uri, "checkpoints", f"step-{step:08d}")

    def read_state(self, step: int) -> dict[str, Any]:
        """Reads state.json of a checkpoint. Raises CorruptedError if it does not match its digest or is none."""
        uri = storage.join(self.checkpoint_uri(step), STATE_FILE)
        state = parse_state(storage.read_bytes(uri, _MAX_STATE_BYTES), uri)
        try:
            return documents.check(state, TrainingState, uri, "use another checkpoint")
        except ValueError as error:
            raise CorruptedError(str(error)) from None

    def set_aside(self, step: int) -> str:
        """Renames a checkpoint so that it no longer counts, in place of the one set aside before. Returns its new URI.

        In object storage, which has no rename, only state.json gets another name.
        """
        folder = self.checkpoint_uri(step)
        if self.is_local:
            place = Path(folder).with_name(f"damaged-{Path(folder).name}")
            shutil.rmtree(place, ignore_errors=True)
            Path(folder).rename(place)
            return str(place)
        state, place = storage.join(folder, STATE_FILE), storage.join(folder, f"damaged-{STATE_FILE}")
        storage.copy(state, place)
        storage.remove_file(state)
        return place

    def save_checkpoint(self, step: int, write: Callable[[Path], None]) -> None:
        """Calls `write` to create the checkpoint in the folder that it is given, and publishes it."""
        if step in self.checkpoint_steps():
            return  # saved by a worker that outlived its killed driver for a moment
        if self.is_local:
            folder = Path(self.checkpoint_uri(step))
            write(folder)
            for partial in folder.parent.glob(".*.partial-*"):  # left by a worker that was killed while writing
                shutil.rmtree(partial)
        else:
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary) / "checkpoint"
                write(folder)
                for file in sorted(folder.iterdir(), key=lambda file: file.name == STATE_FILE):
                    storage.copy(str(file), storage.join(self.checkpoint_uri(step), file.name))

    def delete_old_checkpoints(self, keep: int, others: Collection[int] = ()) -> None:
        """Deletes all checkpoints except the `keep` newest and those of the steps in `others`."""
        for old in self.checkpoint_steps()[:-keep]:
            if old not in others:
                self._delete_checkpoint(old)

    @contextmanager
    def local_checkpoint(self, step: int) -> Iterator[Path]:
        """Yields the checkpoint's folder on this machine. A remote one is downloaded, and removed after the context."""
        if self.is_local:
            yield Path(self.checkpoint_uri(step))
            return
        uri = self.checkpoint_uri(step)
        with downloaded(uri, storage.list_files(uri)) as folder:
            yield folder

    def _delete_checkpoint(self, step: int) -> None:
        filesystem, path = storage.resolve(self.checkpoint_uri(step))
        # Delete the state first: a partial checkpoint then never counts as complete.
        storage.retry(lambda: filesystem.delete_file(f"{path}/{STATE_FILE}"), self.uri)
        storage.retry(lambda: filesystem.delete_dir(path), self.uri)
