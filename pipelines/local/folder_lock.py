"""Lets one command at a time work on a folder: two would write the same files, or train the same run twice."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOCK_FILE = ".lock"


@contextmanager
def only_one(uri: str, field: str) -> Iterator[None]:
    """Holds the folder, which exists, for this process in the context. The system lets go of it where a process dies.

    Folders in object storage, and on file systems without locks, are not held.

    Raises:
        ValueError: another process holds it.
    """
    if "://" in uri:
        yield
        return
    path = Path(uri) / _LOCK_FILE
    file = _locked(path, f"{field}={uri}")
    try:
        yield
    finally:
        if file is not None:
            path.unlink(missing_ok=True)  # before others can have it
            os.close(file)


def _locked(path: Path, what: str) -> int | None:
    """The descriptor of the locked file; None where there are no locks. ValueError if it is locked."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(file, 0)
            os.write(file, str(os.getpid()).encode())
        except OSError as error:
            holder = os.read(file, 20).decode(errors="replace")
            os.close(file)
            if error.errno == errno.EWOULDBLOCK:
                raise ValueError(
                    f"{what}: another command works on it (process {holder}); wait for its end, or give another folder"
                ) from None
            return None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(file)):
                return file
        os.close(file)  # of a process that ended meanwhile, and removed its file
