"""Finds the checkpoint that a run goes on from: the newest one that is whole."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from groupvit.checkpoint_files import FILES_KEY, MODEL_FILE, OPTIMIZER_FILE, CorruptedError, check_digest
from pipelines import storage
from pipelines.runs.folder import JOB_ID, RunFolder

_CHUNK = 2**22
"""Number of bytes that are read at once."""


def newest_whole_step(run: RunFolder, warn: Callable[[str], None]) -> int:
    """Verifies the newest checkpoint, and sets it aside if it is damaged, until one is whole.

    Afterwards, `run.latest_step()` gives the same step to every process. Call this before any of them asks.

    Args:
        run: The run. No process trains it.
        warn: Called with a line for each damaged checkpoint.

    Returns:
        The step of the newest whole checkpoint; 0 without one.

    Raises:
        ValueError: The newest checkpoint was written by another run.
    """
    description = run.read_description() or {}
    while step := run.latest_step():
        try:
            state = run.read_state(step)
            _verify_files(run, step, state)
            _check_amendments(run, step, state, description)
        except CorruptedError as error:
            place = run.set_aside(step)
            before = run.latest_step()
            goes_on = f"from step {before}" if before else "from the start"
            warn(f"{str(error).removesuffix(': use another checkpoint')}: moved to {place}; the run goes on {goes_on}")
        else:
            _check_job(run, step, state, description)
            return step
    return 0


def _verify_files(run: RunFolder, step: int, state: Mapping[str, Any]) -> None:
    """Reads all of a checkpoint, and compares it with its digests. Raises CorruptedError if something differs."""
    expected = state.get(FILES_KEY, {})
    for name in (MODEL_FILE, OPTIMIZER_FILE):
        if name in expected:
            uri = storage.join(run.checkpoint_uri(step), name)
            try:
                check_digest(_digest(uri), expected[name], uri)
            except FileNotFoundError:
                raise CorruptedError(f"{uri} is missing: use another checkpoint") from None


def _digest(uri: str) -> dict[str, Any]:
    """Returns the size and the sha256 of a file, without a copy of it on this machine."""
    filesystem, path = storage.resolve(uri)

    def attempt() -> dict[str, Any]:
        size, found = 0, hashlib.sha256()
        with filesystem.open_input_stream(path) as stream:
            while chunk := stream.read(_CHUNK):
                size += len(chunk)
                found.update(chunk)
        return {"bytes": size, "sha256": found.hexdigest()}

    return storage.retry(attempt, uri)


def _check_amendments(run: RunFolder, step: int, state: Mapping[str, Any], description: Mapping[str, Any]) -> None:
    """Raises CorruptedError if a checkpoint was trained without an amendment that begins before it: by workers that
    outlived their driver."""
    for each in description.get("amendments", []):
        if each["from_step"] < step and each["text"] not in state["config"].get("amendments", []):
            raise CorruptedError(
                f"{run.checkpoint_uri(step)}/state.json does not follow {each['text']!r}: use another checkpoint"
            )


def _check_job(run: RunFolder, step: int, state: Mapping[str, Any], description: Mapping[str, Any]) -> None:
    """Raises ValueError if a checkpoint belongs to another run."""
    theirs, ours = state.get(JOB_ID), description.get(JOB_ID)
    if theirs is not None and ours is not None and theirs != ours:
        raise ValueError(
            f"{run.checkpoint_uri(step)}/state.json is of another run ({JOB_ID} {theirs}; {run.uri}/run.json has "
            f"{ours}): move that checkpoint away, or give another --training.run-name"
        )
