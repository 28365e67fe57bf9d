"""What is recorded of where a run comes from: the version of the code, and texts free of credentials."""

import os
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_USER_INFO = re.compile(r"(?<=://)[^/@\s\"']+@")
_SECRET_FIELD = re.compile(
    r"(?i)([\w.-]*(?:token|secret|password|passwd|signature|credential|api_?key|access_?key(?:_?id)?)[\"']?\s*[=:]\s*[\"']?)"
    r"[^&;,\s\"'}]+"
)


def redact(text: str) -> str:
    """`text` without credentials: user info in URIs, and values of fields named like secrets (token=…,
    X-Amz-Signature=…)."""
    return _SECRET_FIELD.sub(r"\1***", _USER_INFO.sub("***@", text))


def code_version() -> str:
    """Git commit of the working tree this code runs from (`-dirty` if changed), else the installed version.

    Of code that was packed and sent to a cluster, it is what `groupvit submit` found where it was packed.
    """
    if packed := os.environ.get("GROUPVIT_CODE_VERSION"):
        return packed
    here = Path(__file__).resolve()
    # Installed into an environment that lies in someone else's repository, this file is not one of that repository's.
    if _git(here.parent, "ls-files", "--error-unmatch", here.name):
        return _git(here.parent, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    try:
        return version("groupvit")
    except PackageNotFoundError:
        return "unknown"


def _git(folder: Path, *arguments: str) -> str:
    """Output of a git command; empty if it failed or there is no git."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
