"""Describes in one line why MLflow refuses something and how to fix it. A server that is away is not a refusal."""

import contextlib
import os
import re
from collections.abc import Iterator

from pipelines.provenance import redact

_NOT_ACTIVE = re.compile(r"The (run|experiment) (\S+) must be in the 'active' state")
_NO_DRIVER = re.compile(r"No module named '(\w+)'")
_CREDENTIALS = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"


def refusal_of(error: BaseException, uri: str) -> str | None:
    """Returns why MLflow at `uri` refuses everything until the user acts, and what to do.

    Returns None if the server is away or busy, or if it refused only one record.
    """
    text, code = str(error), getattr(error, "error_code", "")
    reason = _of_what_was_deleted(text, uri) or _of_server(text, code) or _of_database(error, text, uri)
    return None if reason is None else redact(f"{uri}: {reason}")


def _of_what_was_deleted(text: str, uri: str) -> str | None:
    if (found := _NOT_ACTIVE.search(text)) is None:
        return None
    kind, number = found.groups()
    restore = f"`MLFLOW_TRACKING_URI={uri} mlflow {kind}s restore --{kind}-id {number}` restores it"
    if kind == "experiment":
        return f"experiment {number} was deleted: {restore}, or give another --tracking.experiment"
    return f"run {number} was deleted: {restore}"


def _of_server(text: str, code: str) -> str | None:
    if code == "UNAUTHENTICATED":
        return f"the server asks for other credentials (HTTP 401): {_CREDENTIALS}"
    if code == "PERMISSION_DENIED":
        return f"the server denies access with these credentials (HTTP 403): {_CREDENTIALS}, or ask for permission"
    if code == "ENDPOINT_NOT_FOUND":
        return "no MLflow server answers there, but another one (HTTP 404): check the address"
    if "not in a valid JSON format" in text or "Exceeded 30 redirects" in text:
        return "no MLflow server answers there, but a page (of a login, perhaps): check the address and credentials"
    return None


def _of_database(error: BaseException, text: str, uri: str) -> str | None:
    if "out-of-date database schema" in text:
        return (
            "the database is of another version of MLflow than the installed one: back it up and run `mlflow db upgrade"
            f" {uri}`, or install the version that made it"
        )
    if "readonly database" in text or "read-only transaction" in text:
        return "the database is read-only: give this user the right to write it and its folder, or another database"
    if "file is not a database" in text or "database disk image is malformed" in text:
        return "the file is not a SQLite database, or is corrupted: give another, or move it away"
    if isinstance(error, ModuleNotFoundError) and (found := _NO_DRIVER.search(text)):
        return f"the database's driver is not installed: install {found[1]}"
    if "unsupported URI" in text or "filesystem tracking backend" in text:
        return (
            "MLflow keeps nothing there: give a server or database, like http://host:5000 or sqlite:///runs/mlflow.db"
        )
    return None


@contextlib.contextmanager
def one_line(tracking_uri: str | None) -> Iterator[None]:
    """Raises a ValueError of one line if MLflow refuses something or cannot be reached inside the context."""
    from mlflow.exceptions import MlflowException

    where = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or "MLFLOW_TRACKING_URI"
    try:
        yield
    except ValueError:
        raise
    except Exception as error:
        reason = refusal_of(error, where)
        if reason is None and not isinstance(error, MlflowException):
            raise
        shown = reason or redact(f"{where}: {' '.join(str(error).split())}"[:500])
        raise ValueError(f"tracking_uri={shown}") from error
