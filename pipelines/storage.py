"""Files by path or URI: nothing else in the system knows whether it reads a local disk or `s3://`.

S3 is set up by the usual environment variables: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
AWS_REGION.
"""

import bisect
import contextlib
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from pyarrow import fs

Result = TypeVar("Result")

_NUM_ATTEMPTS = 5
_FIRST_DELAY = 0.5  # seconds; doubled after every attempt
_PERMANENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError, FileExistsError)


def absolute(uri: str) -> str:
    """A local path made absolute, so that it means the same in every process; any URI as it is."""
    return uri if "://" in uri else str(Path(uri).expanduser().resolve())


def join(uri: str, *parts: str) -> str:
    return "/".join([uri.rstrip("/"), *parts])


def resolve(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system of `uri`, and its path there. ValueError if there is no such kind of URI."""
    try:
        return fs.FileSystem.from_uri(absolute(uri))
    except (ValueError, OSError) as error:  # Arrow reports an unknown scheme as either
        raise ValueError(
            f"{uri}: no path or URI that can be read ({error}); give a local path or s3://bucket/folder"
        ) from error


def read_bytes(uri: str) -> bytes:
    """The content of a file; FileNotFoundError if it does not exist."""
    filesystem, path = resolve(uri)

    def read() -> bytes:
        with filesystem.open_input_file(path) as file:
            return file.read()

    return retry(read, uri)


def write_bytes(uri: str, content: bytes | memoryview) -> None:
    """Write a file that appears whole or not at all, also when the machine goes down; folders are made as needed."""
    filesystem, path = resolve(uri)
    if isinstance(filesystem, fs.LocalFileSystem):
        _write_local(Path(path), content)
        return

    def write() -> None:
        with filesystem.open_output_stream(path) as file:  # an object becomes visible when its upload is complete
            file.write(content)

    retry(write, uri)


def list_files(uri: str) -> list[str]:
    """Names of the files directly in a folder, sorted; empty if there is no such folder."""
    filesystem, path = resolve(uri)
    found = retry(lambda: filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True)), uri)
    return sorted(info.base_name for info in found if info.type == fs.FileType.File)


def list_versions(uri: str) -> dict[str, str]:
    """What `list_files` gives, each with its size and time of change: another text once the file is another."""
    filesystem, path = resolve(uri)
    found = retry(lambda: filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True)), uri)
    files = sorted((info for info in found if info.type == fs.FileType.File), key=lambda info: info.base_name)
    return {info.base_name: f"{info.size} bytes of {info.mtime_ns}" for info in files}


def read_ranges(uri: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Parts of a file, each given by its first byte and its length. Parts that touch are read at once."""
    filesystem, path = resolve(uri)
    joined: list[list[int]] = []
    for start, length in sorted(ranges):
        if joined and start <= joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], start + length)
        else:
            joined.append([start, start + length])

    def read() -> list[bytes]:
        with filesystem.open_input_file(path) as file:
            return [file.read_at(end - start, start) for start, end in joined]

    contents = retry(read, uri)
    starts = [start for start, _ in joined]
    parts: list[bytes] = []
    for start, length in ranges:
        index = bisect.bisect_right(starts, start) - 1
        offset = start - starts[index]
        parts.append(contents[index][offset : offset + length])
    return parts


def remove_file(uri: str) -> None:
    """Remove a file, if it is there."""
    filesystem, path = resolve(uri)
    with contextlib.suppress(FileNotFoundError):
        retry(lambda: filesystem.delete_file(path), uri)


def remove_folder(uri: str) -> None:
    """Remove a folder with all it holds, if it is there."""
    filesystem, path = resolve(uri)
    with contextlib.suppress(FileNotFoundError):
        retry(lambda: filesystem.delete_dir(path), uri)


def retry(attempt: Callable[[], Result], uri: str) -> Result:
    """`attempt()`, up to 5 times with growing pauses between, while object storage fails in ways that may pass.

    Throttling may look like refused access (ray#47230), so that is tried again too; a missing file is not. Local files
    get one try.
    """
    num_attempts = 1 if uri.startswith("file://") or "://" not in uri else _NUM_ATTEMPTS
    for number in range(num_attempts):
        try:
            return attempt()
        except _PERMANENT:
            raise
        except OSError:
            if number == num_attempts - 1:
                raise
            time.sleep(
                _FIRST_DELAY * 2**number * random.uniform(0.5, 1)
            )  # spread out, or all workers come back at once
    raise AssertionError("unreachable: the last attempt returns or raises")


def _write_local(path: Path, content: bytes | memoryview) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp lets nobody else read
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name, too, has to survive a crash
    finally:
        os.close(folder)
