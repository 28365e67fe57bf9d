"""What is kept in the user's home folder, also where that cannot be written, as in some containers."""

import getpass
import os
import secrets
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

from pipelines.local.writable import check_writable

_TOKEN_VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def cache_folder() -> Path:
    """Where files are kept between runs: `$XDG_CACHE_HOME/groupvit`, by default `~/.cache/groupvit`; where that cannot
    be written, a folder of the user's among the temporary files."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "groupvit"
    if _is_writable(folder):
        return folder
    return Path(tempfile.gettempdir()) / f"groupvit-{getpass.getuser()}"


def provide_ray_token(environment: MutableMapping[str, str]) -> None:
    """Lets a cluster that starts here have a token of its own in the environment, where Ray cannot keep one in
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
