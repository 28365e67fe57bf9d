"""The files of a checkpoint and their digests. Nothing here needs torch.

state.json holds the size and the sha256 of the other files under `files`. Its own sha256 covers all of its bytes, with
the digest itself read as 64 zeros. Checkpoints of earlier versions have no digests, and are read unchecked.
"""

import hashlib
import json
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from groupvit.file_kinds import START_BYTES, other_kind

MODEL_FILE, STATE_FILE, OPTIMIZER_FILE = "model.safetensors", "state.json", "optimizer.pt"
FILES_KEY, DIGEST_KEY = "files", "sha256"
"""Keys of state.json: digests of the other files, and its own."""
_LARGEST_STATE = 2**28
"""Largest size of state.json in bytes. A day of unsent metrics takes a few million."""
_NO_DIGEST = "0" * 64


class CorruptedError(ValueError):
    """A file of a checkpoint is corrupted, cut short or missing. The message is one line."""


def digest_of(path: Path) -> dict[str, Any]:
    """Return the size and the sha256 of a file, as state.json keeps them."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": file.tell(), "sha256": digest}


def state_content(state: Mapping[str, Any]) -> bytes:
    """Return the content of state.json, with its own digest if `state` has those of the files. Raise ValueError for
    numbers that are not finite."""
    document = {name: value for name, value in state.items() if name != DIGEST_KEY}
    if FILES_KEY in document:
        document[DIGEST_KEY] = _NO_DIGEST
    content = (json.dumps(document, indent=2, allow_nan=False) + "\n").encode()
    if FILES_KEY not in document:
        return content
    start, _, end = content.rpartition(_NO_DIGEST.encode())
    return start + hashlib.sha256(content).hexdigest().encode() + end


def parse_state(content: bytes, source: str) -> dict[str, Any]:
    """Parse and check state.json. `source` is its name for messages.

    Raises:
        CorruptedError: It is not a JSON object, or it does not match its own digest.
    """
    if len(content) > _LARGEST_STATE:
        raise CorruptedError(f"{source} has {len(content)} bytes, more than {_LARGEST_STATE}: use another checkpoint")
    try:
        state = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise corrupted(source, content, str(error)) from None
    if not isinstance(state, dict):
        raise corrupted(source, content, "it is not a JSON object")
    if {FILES_KEY, DIGEST_KEY} & state.keys():
        digest, files = state.get(DIGEST_KEY), state.get(FILES_KEY)
        if not isinstance(digest, str) or len(digest) != len(_NO_DIGEST) or not isinstance(files, dict):
            raise corrupted(source, content, f"it lacks one of {FILES_KEY}, {DIGEST_KEY}")
        start, _, end = content.rpartition(digest.encode())
        if hashlib.sha256(start + _NO_DIGEST.encode() + end).hexdigest() != digest:
            raise corrupted(source, content, "it does not match its own sha256")
    return state


def read_state(folder: Path) -> dict[str, Any]:
    """Read and check state.json of a checkpoint on this machine.

    Raises:
        CorruptedError: As `parse_state` does.
        FileNotFoundError: There is none.
    """
    path = folder / STATE_FILE
    with path.open("rb") as file:
        return parse_state(file.read(_LARGEST_STATE + 1), str(path))


def write_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write state.json of a checkpoint on this machine, as `state_content` does."""
    (folder / STATE_FILE).write_bytes(state_content(state))


def check_file(folder: Path, name: str, state: Mapping[str, Any]) -> None:
    """Check a file of a checkpoint on this machine against the digest in its state. Without a digest, do nothing.

    Raises:
        CorruptedError: It differs, or is missing.
    """
    path = folder / name
    if name not in state.get(FILES_KEY, {}):
        return
    try:
        found = digest_of(path)
    except FileNotFoundError:
        raise CorruptedError(f"{folder} is not a checkpoint: it has no {name}") from None
    with path.open("rb") as file:
        start = file.read(START_BYTES)
    check_digest(found, state[FILES_KEY][name], str(path), start)


def check_digest(found: Mapping[str, Any], expected: Any, source: str, start: bytes = b"?") -> None:
    """Compare the size and the sha256 of a file with those in state.json.

    Args:
        found: What `digest_of` returns.
        expected: Entry of state.json.
        source: Name of the file, for the message.
        start: Its first bytes, which may show that it is a file of another kind.

    Raises:
        CorruptedError: They differ.
    """
    if not isinstance(expected, dict) or not {"bytes", "sha256"} <= expected.keys():
        raise CorruptedError(f"{source} has no valid digest in {STATE_FILE}: use another checkpoint")
    if found["bytes"] != expected["bytes"]:
        raise corrupted(source, start, f"it has {found['bytes']} bytes, not {expected['bytes']} as {STATE_FILE} says")
    if found["sha256"] != expected["sha256"]:
        raise corrupted(source, start, f"its sha256 is not that in {STATE_FILE}")


def check_optimizer_file(path: Path) -> None:
    """Check that a file by `torch.save` unpacks to no more bytes than it has, before its tensors take memory.

    Raises:
        ValueError: There is none.
        CorruptedError: It is not a zip archive, or some of it is compressed, which torch.save never does.
    """
    if not path.exists():
        raise ValueError(f"{path.parent} has no {path.name}: training cannot be continued from it")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error) as error:
        with path.open("rb") as file:
            raise corrupted(str(path), file.read(START_BYTES), str(error)) from None
    unpacked, size = sum(entry.file_size for entry in entries), path.stat().st_size
    if unpacked > size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CorruptedError(
            f"{path} is a compressed archive, which torch.save does not write ({size:,} bytes unpack to {unpacked:,}): "
            "use another checkpoint"
        )


def corrupted(source: str, start: bytes, reason: str) -> CorruptedError:
    """Return the error for a corrupted file. If its first bytes show that it is of another kind, the message says
    so."""
    kind = other_kind(start[:START_BYTES])
    return CorruptedError(f"{source} {kind}" if kind else f"{source} is corrupted ({reason}): use another checkpoint")
