"""Checks whether a command can write its output, before it works for hours."""

import errno
import os
import tempfile
from pathlib import Path

from pyarrow import fs

from pipelines import storage


def check_writable(uri: str, field: str, given: str | None = None) -> None:
    """Raise ValueError unless files can be written in the folder `uri`, which need not exist. Call this before the
    work.

    On a local disk, this writes and removes a file in the nearest existing folder. In object storage, it only checks
    that the bucket exists. `given` is the value of the field, if that is not `uri`.
    """
    given = uri if given is None else given
    storage.check_bucket(uri)
    filesystem, path = storage.resolve(uri)
    if not isinstance(filesystem, fs.LocalFileSystem):
        return
    folder = Path(path)
    try:
        while not folder.exists():
            folder = folder.parent
        if not folder.is_dir():
            raise ValueError(f"{field}={given} cannot be written: {folder} is a file; give another place")
        longest = os.pathconf(folder, "PC_NAME_MAX")
        for part in Path(path).relative_to(folder).parts:
            if len(os.fsencode(part)) > longest:
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.write(bytes(4096))
    except OSError as error:
        reason = f"in {folder}: {error.strerror}" if error.errno != errno.ENAMETOOLONG else error.strerror
        raise ValueError(f"{field}={given} cannot be written ({reason}); give another place") from error


def check_file_writable(uri: str, field: str, given: str | None = None) -> None:
    """Raise ValueError unless the file `uri` can be written. See `check_writable`."""
    given = uri if given is None else given
    filesystem, path = storage.resolve(uri)
    if isinstance(filesystem, fs.LocalFileSystem) and Path(path).is_dir():
        raise ValueError(f"{field}={given} is a folder: give the name of a file")
    check_writable(uri.rpartition("/")[0] or "/", field, given)
