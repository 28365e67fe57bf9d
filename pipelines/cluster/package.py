"""Builds the package that a job takes to the cluster: the code that is here, and its environment variables."""

import importlib.util
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from pipelines.provenance import code_version

ENVIRONMENT_FILE = "job-environment.json"
"""File in the package. Ray's `env_vars` are not used, because Ray writes them to its logs."""
PACKAGES = ("groupvit", "pipelines")
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")


def environment(names: Sequence[str]) -> dict[str, str]:
    """Return the variables and their values here. ValueError for one that is not set."""
    for name in names:
        if name not in os.environ:
            raise ValueError(f"env={name} is not set here: export {name}=..., or leave --env {name} out")
    return {name: os.environ[name] for name in names}


@contextmanager
def job_package(*, code: bool, variables: dict[str, str], max_bytes: float) -> Iterator[Path | None]:
    """Yield a folder to upload, which exists within the context; None if there is nothing to upload. ValueError if it
    holds more than `max_bytes`."""
    if not code and not variables:
        yield None
        return
    with TemporaryDirectory(prefix="groupvit-job-") as temporary:
        folder = Path(temporary)
        if code:
            for name in PACKAGES:
                shutil.copytree(package_folder(name), folder / name, ignore=_LEFT_OUT)
            # The cluster has no repository that tells the version.
            variables = {"GROUPVIT_CODE_VERSION": code_version()} | variables
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        if size > max_bytes:
            largest = max((file for file in folder.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
            raise ValueError(
                f"max_code_megabytes={max_bytes / 1e6:g}, but the code has {size / 1e6:.1f} MB (largest: "
                f"{largest.relative_to(folder)}): move what is not code out of {' and '.join(PACKAGES)}, or give more"
            )
        file = folder / ENVIRONMENT_FILE
        file.touch(mode=0o600)
        file.write_text(json.dumps(variables), encoding="utf-8")
        yield folder


def package_folder(name: str) -> Path:
    """Return the folder of the package that an import here would find."""
    found = importlib.util.find_spec(name)
    assert found is not None and found.submodule_search_locations is not None
    return Path(found.submodule_search_locations[0])


def load_environment() -> None:
    """Set the environment variables of the job. Ray calls this in every process of the job, in the package's folder."""
    file = Path(ENVIRONMENT_FILE)
    if file.exists():  # a job without code and variables has none
        os.environ.update(json.loads(file.read_text(encoding="utf-8")))
