"""Where MLflow keeps things when it is a database on this machine: the URI of the file, and the artifacts beside it.

In a URI, `%` and `?` have meanings of their own. Unquoted, the database of a folder `runs%41` would be made in `runsA`.
"""

from pathlib import Path
from urllib.parse import quote, unquote

from pipelines.local.writable import check_file_writable

_SCHEME = "sqlite:///"
ARTIFACTS = "mlflow-artifacts"


def database_uri(path: str) -> str:
    """The tracking URI of a database file, given by its absolute path."""
    # Slashes, too: MLflow makes the folder of what follows the scheme, and does not know of quoting.
    return _SCHEME + (quote(path, safe="") if "%" in path or "?" in path else path)


def database_path(uri: str) -> str | None:
    """The absolute path of the database file that a tracking URI names; None for a server, or a database elsewhere."""
    if not uri.startswith(_SCHEME):
        return None
    path = unquote(uri.removeprefix(_SCHEME).partition("?")[0])
    return str(Path(path).absolute()) if path not in ("", ":memory:") else None


def artifacts_beside(uri: str) -> str | None:
    """Where a new experiment of a database on this machine keeps artifacts; None for any other tracking URI, where the
    server decides."""
    path = database_path(uri)
    return None if path is None else artifacts_in(str(Path(path).parent))


def artifacts_in(folder: str) -> str:
    """The place of artifacts in a folder, an absolute path or a URI, as MLflow takes it."""
    place = f"{folder}/{ARTIFACTS}"
    return Path(place).as_uri() if "://" not in place and "%" in place else place


def check_database(uri: str | None, field: str) -> None:
    """ValueError if the tracking URI is a database file of this machine that cannot be written."""
    path = None if uri is None else database_path(uri)
    if path is not None:
        check_file_writable(path, field, uri)
