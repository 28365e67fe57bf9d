"""The kinds of records on their way to MLflow, and the check of those that were read from a file."""

import logging
from pathlib import Path
from typing import Any, Literal

from typing_extensions import TypedDict  # pydantic asks for it before Python 3.12

from pipelines import documents
from pipelines.documents import Count

Record = dict[str, Any]
logger = logging.getLogger(__name__)


class Metrics(TypedDict):
    metrics: dict[str, float]
    step: Count
    time: Count
    training: bool


class Artifact(TypedDict):
    artifact: str
    """Path of a file or folder on this machine."""
    folder: str | None


class Picture(TypedDict):
    picture: str
    """Path of a file on this machine."""
    key: str
    step: Count
    time: Count


class Text(TypedDict):
    text: str
    file: str


class Tags(TypedDict):
    tags: dict[str, str]


class Status(TypedDict):
    status: Literal["FINISHED", "FAILED", "KILLED", "RUNNING", "SCHEDULED"]
    time: Count


AnyRecord = Metrics | Artifact | Picture | Text | Tags | Status


def read_record(line: bytes, source: Path, root: Path) -> Record | None:
    """Returns the record in a line of a spool; None, with a warning, if it is invalid.

    Files to upload must lie in `root`. Otherwise the folder of a run, made by someone else, could have any file of this
    machine uploaded.
    """
    try:
        record: Record = documents.parse(line, AnyRecord, str(source), "its line is skipped")
        if (named := record.get("artifact", record.get("picture"))) is not None:
            _refuse_outside(Path(named), source, root)
    except ValueError as error:
        logger.warning("tracking: %s", error)
        return None
    return record


def is_metrics(record: Record, source: str) -> bool:
    """Whether a record is one of metrics, with a warning if not: `source` is said to hold nothing else."""
    try:
        documents.check(record, Metrics, source, "it is skipped")
    except ValueError as error:
        logger.warning("tracking: %s", error)
        return False
    return True


def _refuse_outside(named: Path, source: Path, root: Path) -> None:
    root = root.resolve()
    for path in (named, *(named.rglob("*") if named.is_dir() else ())):
        if not path.resolve().is_relative_to(root):
            raise ValueError(f"{source} names {path}, which is not in {root}: it is not uploaded")
