"""Lets one command at a time work on a folder. Two would write the same files, or train the same run twice."""

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
    """Lock an existing folder for this process within the context. The system releases the lock if the process dies.

    Folders in object storage, and on file systems without locks, are not locked.

    Raises:
        ValueError: Another process holds the lock.
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
            path.unlink(missing_ok=True)  # before another process can lock it
            os.close(file)


def _locked(path: Path, what: str) -> int | None:
    """Return the descriptor of the locked file; None if the file system has no locks. ValueError if it is already
    locked."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
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
        os.close(file)  # stale: its process has ended and removed the file
