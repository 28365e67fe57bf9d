"""Records where a run comes from: the code version, and text with credentials removed."""

import os
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_USER_INFO = re.compile(r"(?<=://)[^/@\s\"']+@")
_SECRET_FIELD = re.compile(
    r"(?i)((?:token|secret|password|passwd|signature|credential|api_?key|(?:access|secret)_?key(?:_?id)?)[\"']?\s*[=:]\s*[\"']?)"
    r"[^&;,\s\"'}]+"
)

_QUERY_SECRET = re.compile(r"(?i)([?&][^=&\s]*(?:token|secret|password|signature|credential|key)[^=&\s]*=)[^&\s\"']+")


def redact(text: str) -> str:
    """Return `text` without credentials: user info in URIs, and values of fields with secret names (token=…,
    X-Amz-Signature=…)."""
    return _SECRET_FIELD.sub(r"\1***", _USER_INFO.sub("***@", text))


def redact_values(value: Any) -> Any:
    """Return a value of JSON's types with the strings in it redacted: a config may hold the URI of a tracking server
    with a password."""
    if isinstance(value, dict):
        return {key: redact_values(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact_values(item) for item in value]
    return redact(value) if isinstance(value, str) else value


def redact_uris(text: str) -> str:
    """Return `text` without the credentials in URIs; all else is kept, also what looks like a secret's name."""
    return _QUERY_SECRET.sub(r"\1***", _USER_INFO.sub("***@", text))


def code_version() -> str:
    """Return the Git commit of this code's working tree (`-dirty` if changed), or else the installed version.

    On a cluster, return the version that `groupvit submit` recorded when it packaged the code.
    """
    if packed := os.environ.get("GROUPVIT_CODE_VERSION"):
        return packed
    here = Path(__file__).resolve()
    # The environment may lie inside another project's repository, which then does not track this file.
    if _git(here.parent, "ls-files", "--error-unmatch", here.name):
        return _git(here.parent, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    try:
        return version("groupvit")
    except PackageNotFoundError:
        return "unknown"


def _git(folder: Path, *arguments: str) -> str:
    """Return the output of a git command; empty if the command failed or git is not installed."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
