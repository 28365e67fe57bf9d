"""Reads and writes files by path or URI. No other module knows whether a file is on a local disk or on `s3://`.

S3 uses the settings of AWS's own tools: AWS_ENDPOINT_URL, AWS_REGION, and the usual chain of credentials
(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, profiles, roles of the machine).
"""

import contextlib
import errno
import functools
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pyarrow.parquet as pq
from pyarrow import fs

Result = TypeVar("Result")

_NUM_ATTEMPTS = 8  # about half a minute, the time a store takes to restart
_FIRST_DELAY, _LONGEST_DELAY = 0.5, 8.0  # seconds; doubled after every attempt
_CONNECT_TIMEOUT, _REQUEST_TIMEOUT = 5.0, 20.0  # seconds
MAX_BYTES = 2**32  # of a file that is read as a whole
_PERMANENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError, FileExistsError)
_REFUSED = ("ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "INVALID_CLIENT_TOKEN", "EXPIRED")
_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_BY = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_S3_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", *_KEYS)

_seen_to_work: set[str] = set()
"""Buckets this process has read from or written to. Refused access to one of them is treated as temporary."""


class StorageError(OSError):
    """Object storage cannot be used. The message is one line with the reason and what to check."""


class StorageRefusedError(StorageError):
    """Object storage will keep failing: the bucket does not exist, or access is refused."""


def absolute(uri: str) -> str:
    """Return a local path as an absolute path, which means the same in every process. Return a URI unchanged."""
    return uri if "://" in uri else str(Path(uri).expanduser().resolve())


def join(uri: str, *parts: str) -> str:
    return "/".join([uri.rstrip("/"), *parts])


def is_utf8(name: str) -> bool:
    """Whether a name is valid UTF-8. Python keeps other bytes of file names as lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def resolve(uri: str) -> tuple[fs.FileSystem, str]:
    """Return the file system of `uri` and the path within it. ValueError if the URI is invalid or of an unknown
    kind."""
    if uri.startswith("s3://") and "?" not in uri:
        path = uri.removeprefix("s3://").rstrip("/")
        bucket = path.partition("/")[0]
        if not bucket or "@" in bucket:
            raise ValueError(f"s3://{bucket.rpartition('@')[2]}: give s3://bucket/folder, and credentials by {_BY}")
        return _s3(bucket, tuple(os.environ.get(name) for name in _S3_VARIABLES)), path
    if not is_utf8(uri):
        raise ValueError(f"{uri!a}: the name is not UTF-8; rename it")
    try:
        return fs.FileSystem.from_uri(absolute(uri))
    except (ValueError, OSError) as error:  # Arrow reports an unknown scheme as either
        raise ValueError(
            f"{uri}: no path or URI that can be read ({error}); give a local path or s3://bucket/folder"
        ) from error


@functools.lru_cache(maxsize=32)
def _s3(bucket: str, variables: tuple[str | None, ...]) -> fs.S3FileSystem:
    """Return the cached client of a bucket, so that connections are reused. A changed environment gets a new client."""
    settings = dict(zip(_S3_VARIABLES, variables, strict=True))
    endpoint = settings["AWS_ENDPOINT_URL_S3"] or settings["AWS_ENDPOINT_URL"]
    region = settings["AWS_REGION"] or settings["AWS_DEFAULT_REGION"]
    if region is None:
        region = "us-east-1" if endpoint else retry(lambda: fs.resolve_s3_region(bucket), f"s3://{bucket}")
    return fs.S3FileSystem(
        endpoint_override=endpoint,
        region=region,
        connect_timeout=_CONNECT_TIMEOUT,
        request_timeout=_REQUEST_TIMEOUT,
    )


def read_bytes(uri: str, limit: int = MAX_BYTES) -> bytes:
    """Return the content of a file. FileNotFoundError if it does not exist, ValueError if it is larger than `limit`."""
    filesystem, path = resolve(uri)
    if isinstance(filesystem, fs.LocalFileSystem) and filesystem.get_file_info(path).type == fs.FileType.Unknown:
        raise ValueError(f"{uri}: is a device, socket or pipe; give a file")  # reading it may never end

    def read() -> bytes:
        with filesystem.open_input_file(path) as file:
            if (size := file.size()) > limit:
                raise ValueError(f"{uri}: has {size:,} bytes, more than the {limit:,} such a file may have; replace it")
            return file.read(size)

    try:
        return retry(read, uri)
    except NotADirectoryError as error:  # a part of the path is a file
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), uri) from error


def write_bytes(uri: str, content: bytes | memoryview) -> None:
    """Write a file atomically, even if the machine crashes. Missing folders are created."""
    filesystem, path = resolve(uri)
    if isinstance(filesystem, fs.LocalFileSystem):
        _write_local(Path(path), content)
        return

    def write() -> None:
        with filesystem.open_output_stream(path) as file:  # an object becomes visible when its upload is complete
            file.write(content)

    retry(write, uri)


def copy(source: str, target: str) -> None:
    """Copy one file of any size. FileNotFoundError if it does not exist."""
    (source_system, source_path), (target_system, target_path) = resolve(source), resolve(target)

    def attempt() -> None:
        fs.copy_files(source_path, target_path, source_filesystem=source_system, destination_filesystem=target_system)

    retry(attempt, source if "://" in source else target)


def open_parquet(uri: str) -> pq.ParquetFile:
    """Open a Parquet file and read its footer. Adjacent columns come by one ranged request. The caller closes it."""
    filesystem, path = resolve(uri)
    return retry(lambda: pq.ParquetFile(filesystem.open_input_file(path), pre_buffer=True), uri)


@contextlib.contextmanager
def reporting_corruption(uri: str, fix: str) -> Iterator[None]:
    """Raise a one-line ValueError if a Parquet file read in the context is corrupted or missing; `fix` says what to do.
    Errors of storage and MemoryError are passed on."""
    try:
        yield
    except FileNotFoundError as error:
        raise ValueError(f"{uri}: is missing; {fix}") from error
    except Exception as error:  # Arrow raises errors of every kind on corrupted files
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and is_of_storage(error)):
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{uri}: is corrupted or incomplete ({reason}); {fix}") from error


def is_data(path: str) -> bool:
    """Whether `path`, relative to the folder that is read, is data. Systems and editors leave other files and folders:
    `._NAME`, `.DS_Store`, `.ipynb_checkpoints`, `__MACOSX`, unfinished uploads."""
    return not any(name.startswith(".") or name == "__MACOSX" for name in path.split("/"))


def list_files(uri: str) -> list[str]:
    """Return the sorted names of the files directly in a folder; empty if the folder does not exist."""
    return sorted(info.base_name for info in _listed(uri) if info.type == fs.FileType.File)


def list_folders(uri: str) -> list[str]:
    """Return the sorted names of the data folders directly in a folder; empty if the folder does not exist."""
    folders = (info.base_name for info in _listed(uri) if info.type == fs.FileType.Directory)
    return sorted(name for name in folders if is_data(name))


def list_versions(uri: str) -> dict[str, str]:
    """Return size and modification time, as text, of each file of `list_files`. The text changes when the file does."""
    files = {info.base_name: info for info in _listed(uri) if info.type == fs.FileType.File}
    return {name: f"{info.size} bytes of {info.mtime_ns}" for name, info in sorted(files.items())}


def list_sizes(uri: str) -> dict[str, int]:
    """Return the size in bytes of each data file in a folder and below it, by its path from the folder, sorted. Empty
    if there are none."""
    _, path = resolve(uri)
    sizes = {info.path[len(path) + 1 :]: info.size for info in _listed(uri, recursive=True) if info.is_file}
    return {name: sizes[name] for name in sorted(sizes) if is_data(name)}


def _listed(uri: str, *, recursive: bool = False) -> list[fs.FileInfo]:
    filesystem, path = resolve(uri)
    selector = fs.FileSelector(path, allow_not_found=True, recursive=recursive)
    return retry(lambda: filesystem.get_file_info(selector), uri)


def exists(uri: str) -> bool:
    """Whether a file or folder exists."""
    filesystem, path = resolve(uri)
    return retry(lambda: filesystem.get_file_info(path), uri).type != fs.FileType.NotFound


def remove_file(uri: str) -> None:
    """Remove a file if it exists."""
    filesystem, path = resolve(uri)
    with contextlib.suppress(FileNotFoundError):
        retry(lambda: filesystem.delete_file(path), uri)


def remove_folder(uri: str) -> None:
    """Remove a folder and its contents if it exists."""
    filesystem, path = resolve(uri)
    with contextlib.suppress(FileNotFoundError):
        retry(lambda: filesystem.delete_dir(path), uri)


def retry(attempt: Callable[[], Result], uri: str) -> Result:
    """Return `attempt()`, tried up to 8 times with growing pauses while object storage fails in a way that may be
    temporary.

    Throttling may look like refused access (ray#47230), which is tried as often if this process has used the bucket
    before, else twice. A missing file or bucket is not retried. Local files get one try. StorageError after the last.
    """
    if "://" not in uri or uri.startswith("file://"):
        return attempt()
    bucket = uri.partition("://")[2].partition("/")[0]
    for number in range(1, _NUM_ATTEMPTS + 1):
        try:
            result = attempt()
        except _PERMANENT:
            raise
        except OSError as error:
            if not is_of_storage(error):  # Arrow reports corrupted content like this
                raise
            refused = any(word in str(error) for word in _REFUSED)
            num_attempts = 2 if refused and bucket not in _seen_to_work else _NUM_ATTEMPTS
            if number >= num_attempts or isinstance(error, StorageError) or "NO_SUCH_BUCKET" in str(error):
                raise _explained(error, uri, bucket, refused) from error
            delay = min(_FIRST_DELAY * 2 ** (number - 1), _LONGEST_DELAY)
            time.sleep(delay * random.uniform(0.5, 1))  # jitter, so that workers do not all retry at once
        else:
            _seen_to_work.add(bucket)
            return result
    raise AssertionError("unreachable: the last attempt returns or raises")


def is_of_storage(error: OSError) -> bool:
    """Whether a disk, a server or the network failed. Arrow raises OSError for corrupted content, too."""
    return isinstance(error, StorageError) or error.errno is not None or "AWS Error" in str(error)


def check_bucket(uri: str) -> None:
    """Raise StorageRefusedError if the bucket of `uri` does not exist. A reader would only see missing files."""
    if uri.startswith("s3://"):
        filesystem, path = resolve(uri)
        bucket = path.partition("/")[0]
        if retry(lambda: filesystem.get_file_info(bucket), uri).type == fs.FileType.NotFound:
            raise StorageRefusedError(f"{uri}: there is no bucket {bucket!r}; create it, or give another")


def _explained(error: OSError, uri: str, bucket: str, refused: bool) -> StorageError:
    if isinstance(error, StorageError):
        return error
    if "NO_SUCH_BUCKET" in str(error):
        return StorageRefusedError(f"{uri}: there is no bucket {bucket!r}; create it, or give another")
    if refused:
        # If this process has used the bucket before, this may be throttling.
        kind = StorageError if bucket in _seen_to_work else StorageRefusedError
        return kind(f"{uri}: access is refused; check {_BY} (and AWS_SESSION_TOKEN, which expires)")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"
    reason = str(error).partition("Details: ")[2] or str(error)
    return StorageError(f"{uri}: {endpoint} fails ({reason}); check AWS_ENDPOINT_URL, the server and the network")


def short_prefix(name: str) -> str:
    """Return a prefix for the temporary name of `name`. It is short, so that more can follow within 255 bytes."""
    return f".{name[:40]}."


def _write_local(path: Path, content: bytes | memoryview) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=short_prefix(path.name), suffix=".part", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes the file readable by its owner only
        os.replace(temporary, path)
    except BaseException as error:
        os.unlink(temporary)
        if isinstance(error, OSError) and error.errno is not None:  # the error of a full disk does not name the file
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # so that the new name survives a crash, too
    finally:
        os.close(folder)
