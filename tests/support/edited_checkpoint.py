"""Changes a checkpoint as whoever wrote it could have: with digests that fit."""

from pathlib import Path
from typing import Any

from groupvit.checkpoint_files import digest_of, read_state, write_state


def edit_state(folder: Path, **changes: Any) -> None:
    """Change entries of state.json."""
    write_state(folder, read_state(folder) | changes)


def renew_digests(folder: Path) -> None:
    """Make the digests of files that were changed fit."""
    edit_state(folder, files={name: digest_of(folder / name) for name in read_state(folder)["files"]})
