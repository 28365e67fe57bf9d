"""Files kept in the user's home folder, with a fallback if it is not writable, as in some containers."""

import getpass
import os
import secrets
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

from pipelines.local.writable import check_writable

_TOKEN_VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def cache_folder() -> Path:
    """Return the folder for files kept between runs: `$XDG_CACHE_HOME/groupvit`, by default `~/.cache/groupvit`. If it
    is not writable, return a folder for this user in the temporary directory."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "groupvit"
    if _is_writable(folder):
        return folder
    return Path(tempfile.gettempdir()) / f"groupvit-{getpass.getuser()}"


def provide_ray_token(environment: MutableMapping[str, str]) -> None:
    """Set a token in `environment` for a cluster that starts here, if there is none and Ray cannot keep one in
    `~/.ray`."""
    folder = Path("~/.ray").expanduser()
    is_set = bool(set(_TOKEN_VARIABLES) & set(environment)) or (folder / "auth_token").exists()
    if not is_set and not _is_writable(folder):
        environment["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _is_writable(folder: Path) -> bool:
    try:
        check_writable(str(folder), "folder")
    except ValueError:
        return False
    return True
