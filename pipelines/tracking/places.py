"""Locations of an MLflow database on this machine: the URI of its file, and the artifact folder beside it.

`%` and `?` have a special meaning in a URI. Without quoting, the database of a folder `runs%41` would be created in
`runsA`.
"""

from pathlib import Path
from urllib.parse import quote, unquote

from pipelines.local.writable import check_file_writable

_SCHEME = "sqlite:///"
ARTIFACTS = "mlflow-artifacts"


def database_uri(path: str) -> str:
    """Returns the tracking URI of a database file, given by its absolute path."""
    # Quote slashes, too: MLflow creates the folder of the text after the scheme, without unquoting it.
    return _SCHEME + (quote(path, safe="") if "%" in path or "?" in path else path)


def database_path(uri: str) -> str | None:
    """Returns the absolute path of the database file in a tracking URI. None: a server, or a database elsewhere."""
    if not uri.startswith(_SCHEME):
        return None
    path = unquote(uri.removeprefix(_SCHEME).partition("?")[0])
    return str(Path(path).absolute()) if path not in ("", ":memory:") else None


def artifacts_beside(uri: str) -> str | None:
    """Returns the artifact location of a new experiment in a database on this machine.

    Returns None for any other tracking URI: the server decides.
    """
    path = database_path(uri)
    return None if path is None else artifacts_in(str(Path(path).parent))


def artifacts_in(folder: str) -> str:
    """Returns the artifact location in a folder (an absolute path or a URI), in the form that MLflow accepts."""
    place = f"{folder}/{ARTIFACTS}"
    return Path(place).as_uri() if "://" not in place and "%" in place else place


def check_database(uri: str | None, field: str) -> None:
    """Raises ValueError if the tracking URI is a database file on this machine that cannot be written."""
    path = None if uri is None else database_path(uri)
    if path is not None:
        check_file_writable(path, field, uri)
