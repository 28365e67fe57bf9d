"""Reads published lists of image URLs with captions as one table of LIST_SCHEMA.

A list is a file or a folder of files: csv, tsv, json, jsonl or parquet; all but parquet optionally compressed (.gz,
.bz2, .zst); local or s3://. The readers describe each format: text.py, json_files.py and parquet.py.
"""

import hashlib
from collections.abc import Iterable, Iterator

import pyarrow as pa
from pyarrow import fs

from pipelines import storage
from pipelines.url_lists.content import START, check_compression
from pipelines.url_lists.json_files import read_json
from pipelines.url_lists.parquet import read_parquet
from pipelines.url_lists.presets import Columns
from pipelines.url_lists.rejected import Reject, RejectedRows
from pipelines.url_lists.rows import LIST_SCHEMA as LIST_SCHEMA
from pipelines.url_lists.rows import finished
from pipelines.url_lists.text import read_csv, read_tsv

_KINDS = ("csv", "tsv", "jsonl", "json", "parquet")
_COMPRESSIONS = ("gz", "bz2", "zst")


def list_files(uri: str) -> list[str]:
    """Returns the URIs of the files of a list, sorted. Raises ValueError if none can be read."""
    filesystem, path = storage.resolve(uri)
    try:
        kind = storage.retry(lambda: filesystem.get_file_info(path).type, uri)
    except OSError as error:
        raise ValueError(f"{uri}: cannot be read ({error}); check the bucket and the credentials") from error
    if kind == fs.FileType.NotFound:
        raise ValueError(f"{uri}: no such file or folder; give a list of URLs")
    if kind == fs.FileType.File:
        _kind(uri)
        return [uri]
    names = [name for name in storage.list_files(uri) if storage.is_data(name) and not name.startswith("_")]
    files = [storage.join(uri, name) for name in names if _kind_or_none(name)]
    if not files:
        raise ValueError(f"{uri}: no list in this folder; give files that end in {', '.join(_KINDS)}, or those + .gz")
    return files


def digest(files: Iterable[str]) -> str:
    """Hashes the contents of a list to 32 hexadecimal digits. The order of the files matters, their names do not."""
    whole = hashlib.sha256()
    for uri in files:
        filesystem, path = storage.resolve(uri)
        content = hashlib.sha256()
        with filesystem.open_input_stream(path, compression=None) as file:
            while piece := file.read(1 << 20):
                content.update(piece)
        whole.update(content.digest())
    return whole.hexdigest()[:32]


def read_list(files: Iterable[str], columns: Columns, rejected: RejectedRows) -> Iterator[pa.Table]:
    """Yields the whole list as tables of LIST_SCHEMA. Invalid rows go to `rejected`. Holds some thousands of rows, or
    one JSON document, in memory.

    Raises ValueError, in one line, if a file lacks a column, is of another kind or is corrupted, or if too many rows
    are invalid.
    """
    row = 0
    for uri in files:
        reject = rejected.of(uri, "row" if _kind(uri) == "parquet" else "line")
        try:
            for table in _read(uri, columns, reject):
                rows = finished(table, columns, row, reject)
                row += rows.num_rows
                rejected.num_good += rows.num_rows
                rejected.check(finished=False)
                if rows.num_rows:
                    yield rows
        except (pa.ArrowException, OSError, EOFError) as error:
            if isinstance(error, OSError) and storage.is_of_storage(error):
                raise ValueError(
                    f"{uri}: cannot be read ({error}); check the file, the disk and the network"
                ) from error
            raise ValueError(
                f"{uri}: corrupted or incomplete ({' '.join(str(error).split())[:200]}); write or copy it again"
            ) from error
    rejected.check(finished=True)


def _read(uri: str, columns: Columns, reject: Reject) -> Iterator[pa.Table]:
    filesystem, path = storage.resolve(uri)
    kind = _kind(uri)
    if kind == "parquet":
        with filesystem.open_input_file(path) as file:
            yield from read_parquet(uri, file, columns, reject)
        return
    with filesystem.open_input_stream(path, compression=None) as file:
        check_compression(uri, file.read(START))
    if kind in ("json", "jsonl"):
        yield from read_json(uri, lambda: filesystem.open_input_stream(path), columns, reject)
        return
    with filesystem.open_input_stream(path) as file:
        yield from (read_tsv if kind == "tsv" else read_csv)(uri, file, columns, reject)


def shards(tables: Iterable[pa.Table], rows_per_shard: int) -> Iterator[pa.Table]:
    """Splits the rows into tables of `rows_per_shard` rows. The last one may be smaller."""
    waiting: list[pa.Table] = []
    num_waiting = 0
    for table in tables:
        waiting.append(table)
        num_waiting += table.num_rows
        while num_waiting >= rows_per_shard:
            joined = pa.concat_tables(waiting)
            yield joined.slice(0, rows_per_shard).combine_chunks()
            waiting = [joined.slice(rows_per_shard)]
            num_waiting -= rows_per_shard
    if num_waiting:
        yield pa.concat_tables(waiting).combine_chunks()


def _kind_or_none(uri: str) -> str | None:
    name = uri.rpartition("/")[2].lower()
    stem, _, compression = name.rpartition(".")
    kind = stem.rpartition(".")[2] if compression in _COMPRESSIONS else compression
    return kind if kind in _KINDS else None


def _kind(uri: str) -> str:
    kind = _kind_or_none(uri)
    if kind is None:
        raise ValueError(f"{uri}: unknown kind of list; give a file that ends in {', '.join(_KINDS)}, or those + .gz")
    return kind
