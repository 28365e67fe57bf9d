"""The record of the steps that a run has skipped: RUNS/NAME/skipped/step-00000017.json.

The samples of a step follow from the config, so they are not kept here: `groupvit inspect-step` makes them again.
"""

import json
import math
import re
from typing import Any

from pipelines import documents, storage
from pipelines.runs.contents import SkippedStep
from pipelines.runs.folder import RunFolder

_NAME = re.compile(r"step-([0-9]{8,15})\.json")


def write_skipped(run: RunFolder, step: int, content: dict[str, Any]) -> None:
    """Records that step `step` (from 0) was skipped. Numbers that are not finite become None."""
    safe = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in content.items()
    }
    storage.write_bytes(_uri(run, step), (json.dumps(safe, indent=2) + "\n").encode())


def read_skipped(run: RunFolder, step: int) -> dict[str, Any] | None:
    """Reads the record of step `step` (from 0). Returns None if it was not skipped."""
    try:
        return documents.read(_uri(run, step), SkippedStep, "delete it")
    except FileNotFoundError:
        return None


def skipped_steps(run: RunFolder) -> list[int]:
    """Returns the recorded steps, ascending."""
    names = storage.list_files(storage.join(run.uri, "skipped"))
    return sorted(int(match[1]) for name in names if (match := _NAME.fullmatch(name)))


def _uri(run: RunFolder, step: int) -> str:
    return storage.join(run.uri, "skipped", f"step-{step:08d}.json")
