"""Files by path or URI: nothing else in the system knows whether it reads a local disk or `s3://`.

S3 is set up by what AWS's own tools go by: AWS_ENDPOINT_URL, AWS_REGION, and the usual chain of credentials
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

_NUM_ATTEMPTS = 8  # about half a minute: what a store takes to start again
_FIRST_DELAY, _LONGEST_DELAY = 0.5, 8.0  # seconds; doubled after every attempt
_CONNECT_TIMEOUT, _REQUEST_TIMEOUT = 5.0, 20.0  # seconds
_PERMANENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError, FileExistsError)
_REFUSED = ("ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "INVALID_CLIENT_TOKEN", "EXPIRED")
_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_S3_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", *_KEYS)

_seen_to_work: set[str] = set()
"""Buckets of which this process has read or written something: refusals are then thought to pass."""


class StorageError(OSError):
    """Object storage that cannot be used: one line that says why, and what to check."""


class StorageRefusedError(StorageError):
    """Object storage that will not be of use later either: there is no such bucket, or access is refused."""


def absolute(uri: str) -> str:
    """A local path made absolute, so that it means the same in every process; any URI as it is."""
    return uri if "://" in uri else str(Path(uri).expanduser().resolve())


def join(uri: str, *parts: str) -> str:
    return "/".join([uri.rstrip("/"), *parts])


def is_utf8(name: str) -> bool:
    """Whether a name is of characters; Python keeps bytes of file names that are not UTF-8 as lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def resolve(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system of `uri`, and its path there. ValueError if there is no such kind of URI."""
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


_BY = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"


@functools.lru_cache(maxsize=32)
def _s3(bucket: str, variables: tuple[str | None, ...]) -> fs.S3FileSystem:
    """One client for a bucket, so that its connections are used again; another when the environment changes."""
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


def read_bytes(uri: str) -> bytes:
    """The content of a file; FileNotFoundError if it does not exist."""
    filesystem, path = resolve(uri)

    def read() -> bytes:
        with filesystem.open_input_file(path) as file:
            return file.read()

    try:
        return retry(read, uri)
    except NotADirectoryError as error:  # a part of the path is a file
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), uri) from error


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


def copy(source: str, target: str) -> None:
    """Copy one file; FileNotFoundError if it does not exist. Its size does not matter."""
    (source_system, source_path), (target_system, target_path) = resolve(source), resolve(target)

    def attempt() -> None:
        fs.copy_files(source_path, target_path, source_filesystem=source_system, destination_filesystem=target_system)

    retry(attempt, source if "://" in source else target)


def open_parquet(uri: str) -> pq.ParquetFile:
    """A Parquet file, its footer read; columns that lie side by side come by one ranged read. Close it."""
    filesystem, path = resolve(uri)
    return retry(lambda: pq.ParquetFile(filesystem.open_input_file(path), pre_buffer=True), uri)


@contextlib.contextmanager
def naming_damage(uri: str, mend: str) -> Iterator[None]:
    """ValueError, one line, for a Parquet file that turns out in the context to be damaged or missing; `mend` says what
    to do. Storage that fails stays a StorageError, memory that runs out a MemoryError."""
    try:
        yield
    except FileNotFoundError as error:
        raise ValueError(f"{uri}: is missing; {mend}") from error
    except Exception as error:  # Arrow raises errors of every kind on damaged files
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and is_of_storage(error)):
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{uri}: is damaged or half-written ({reason}); {mend}") from error


def is_data(path: str) -> bool:
    """Whether a file or folder, by its path from the folder that is read, is data, and not something that systems and
    editors leave beside it: `._NAME`, `.DS_Store`, `.ipynb_checkpoints`, `__MACOSX`, an upload under way."""
    return not any(name.startswith(".") or name == "__MACOSX" for name in path.split("/"))


def list_files(uri: str) -> list[str]:
    """Names of the files directly in a folder, sorted; empty if there is no such folder."""
    return sorted(info.base_name for info in _listed(uri) if info.type == fs.FileType.File)


def list_folders(uri: str) -> list[str]:
    """Names of the folders of data directly in a folder, sorted; empty if there is no such folder."""
    folders = (info.base_name for info in _listed(uri) if info.type == fs.FileType.Directory)
    return sorted(name for name in folders if is_data(name))


def list_versions(uri: str) -> dict[str, str]:
    """What `list_files` gives, each with its size and time of change: another text once the file is another."""
    files = sorted((info for info in _listed(uri) if info.type == fs.FileType.File), key=lambda info: info.base_name)
    return {info.base_name: f"{info.size} bytes of {info.mtime_ns}" for info in files}


def list_sizes(uri: str) -> dict[str, int]:
    """Sizes in bytes of all files of data in a folder and below it, by path from the folder, sorted; empty if there is
    none."""
    _, path = resolve(uri)
    sizes = {info.path[len(path) + 1 :]: info.size for info in _listed(uri, recursive=True) if info.is_file}
    return {name: sizes[name] for name in sorted(sizes) if is_data(name)}


def _listed(uri: str, *, recursive: bool = False) -> list[fs.FileInfo]:
    filesystem, path = resolve(uri)
    selector = fs.FileSelector(path, allow_not_found=True, recursive=recursive)
    return retry(lambda: filesystem.get_file_info(selector), uri)


def exists(uri: str) -> bool:
    """Whether there is such a file or folder."""
    filesystem, path = resolve(uri)
    return retry(lambda: filesystem.get_file_info(path), uri).type != fs.FileType.NotFound


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
    """`attempt()`, up to 8 times with growing pauses between, while object storage fails in ways that may pass.

    Throttling may look like refused access (ray#47230): where this process was served before, that is tried as often,
    else twice. A missing file or bucket is final. Local files get one try. StorageError at the end.
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
            if not is_of_storage(error):  # damaged content, says Arrow
                raise
            refused = any(word in str(error) for word in _REFUSED)
            num_attempts = 2 if refused and bucket not in _seen_to_work else _NUM_ATTEMPTS
            if number >= num_attempts or isinstance(error, StorageError) or "NO_SUCH_BUCKET" in str(error):
                raise _explained(error, uri, bucket, refused) from error
            delay = min(_FIRST_DELAY * 2 ** (number - 1), _LONGEST_DELAY)
            time.sleep(delay * random.uniform(0.5, 1))  # spread out, or all workers come back at once
        else:
            _seen_to_work.add(bucket)
            return result
    raise AssertionError("unreachable: the last attempt returns or raises")


def is_of_storage(error: OSError) -> bool:
    """Whether a disk, a server or the network failed; Arrow raises OSError for damaged content, too."""
    return isinstance(error, StorageError) or error.errno is not None or "AWS Error" in str(error)


def check_bucket(uri: str) -> None:
    """StorageError if `uri` is in a bucket that does not exist: to a reader, its files are merely missing."""
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
        # Where this process was served before, it may be throttling after all.
        kind = StorageError if bucket in _seen_to_work else StorageRefusedError
        return kind(f"{uri}: access is refused; check {_BY} (and AWS_SESSION_TOKEN, which expires)")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"
    reason = str(error).partition("Details: ")[2] or str(error)
    return StorageError(f"{uri}: {endpoint} fails ({reason}); check AWS_ENDPOINT_URL, the server and the network")


def short_prefix(name: str) -> str:
    """How the name of something temporary begins that becomes `name`: short enough for more to follow, up to 255
    bytes."""
    return f".{name[:40]}."


def _write_local(path: Path, content: bytes | memoryview) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=short_prefix(path.name), suffix=".part", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp lets nobody else read
        os.replace(temporary, path)
    except BaseException as error:
        os.unlink(temporary)
        if isinstance(error, OSError) and error.errno is not None:  # a full disk says not which file it was
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name, too, has to survive a crash
    finally:
        os.close(folder)
