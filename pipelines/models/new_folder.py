"""Creates a command's output folder, on disk or in object storage. It appears complete, and replaces no other one."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines import storage
from pipelines.local.writable import check_writable


@contextmanager
def new_folder(uri: str, *, last: str) -> Iterator[Path]:
    """Yields a local path where the caller creates a folder of files. After the context, the files are at `uri`.

    On disk, the folder appears by a rename. In object storage, the file `last` is uploaded after all others. If the
    context ends with an exception, nothing appears.

    Raises:
        ValueError: `uri` is a file or a folder that is not empty, or it cannot be written, or another command created
            it during the context.
    """
    uri = storage.absolute(uri)
    is_local = "://" not in uri
    target = Path(uri)
    if is_local and os.path.exists(target) and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"out={uri} exists: give another folder, or delete it first")
    check_writable(uri, "out")
    if not is_local and storage.list_files(uri):
        raise ValueError(f"out={uri} has files in it: give another folder, or delete them first")
    if is_local:
        target.parent.mkdir(parents=True, exist_ok=True)
    parent = target.parent if is_local else None
    around = Path(tempfile.mkdtemp(prefix=storage.short_prefix(target.name), suffix=".partial", dir=parent))
    try:
        folder = around / "folder"
        yield folder
        if is_local:
            try:
                folder.rename(target)  # also over an empty folder
            except OSError as error:
                if error.errno != errno.ENOTEMPTY:
                    raise
                raise ValueError(f"out={uri} was made by another command meanwhile: give another folder") from error
        else:
            names = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
            for name in sorted(names, key=lambda name: name == last):
                storage.copy(str(folder / name), storage.join(uri, name))
    finally:
        shutil.rmtree(around)
