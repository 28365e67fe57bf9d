"""Raw shards: lists them, cuts them into pieces of work, and reads their rows in small batches.

A piece is some consecutive row groups of a shard. img2dataset writes row groups of 100 rows. A shard with huge ones is
read in small batches, too.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.curation.config import CurateConfig, Source
from pipelines.dataset.raw_columns import CAPTION_COLUMNS, captions, texts, wrong_with_columns
from pipelines.dataset.raw_shards import raw_shards

COLUMNS = (
    *("jpg", *CAPTION_COLUMNS),
    *("row", "url", "key", "status", "error_message", "sha256", "license"),
    *("similarity", "nsfw", "punsafe", "pwatermark"),
)
"""Columns to read, by name in lower case, because data sets differ in case."""
_TEXTS = frozenset(COLUMNS) - {"jpg", *CAPTION_COLUMNS, "row", "similarity", "punsafe", "pwatermark"}
ROWS_PER_BATCH = 64  # images may be megabytes each
_BUFFER_SIZE = 2**22  # bytes to read ahead, per column
_NUM_THREADS = 32  # that wait for object storage


class UnreadableShardError(ValueError):
    """A shard that is not a parquet file, or is corrupted."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A raw shard as described by its footer."""

    source: int
    """Index of its source."""
    uri: str
    version: str
    """Changes when the file changes."""
    rows: tuple[int, ...]
    """Number of rows of each row group."""
    superseded: tuple[int, ...] = ()
    """Values of the column `row` that a later shard replaces. These rows of this shard are ignored."""
    error: str | None = None
    """Why the shard cannot be read."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Row groups `first` to `end` - 1 of a shard."""

    number: int
    """Position in the order of sources, shards and row groups."""
    source: int
    first_of_source: int
    """Number of the first piece of its source."""
    uri: str
    first: int
    end: int
    num_rows: int
    """Number of rows as stored, including superseded ones."""
    superseded: tuple[int, ...] = ()


def list_shards(source: Source) -> list[tuple[str, str, tuple[int, ...]]]:
    """Returns URI, version and superseded rows of each shard of a source, in order.

    Raises ValueError if no shard can be read, or if the download is not finished.
    """
    try:
        found = raw_shards(source.uri)
    except ValueError as error:
        storage.check_bucket(source.uri)
        raise ValueError(f"raw={error}") from None
    if not found.finished:
        raise ValueError(
            f"raw={source.uri}: its download is not finished; give the same `groupvit download` again first"
        )
    folders = {shard.uri.rpartition("/")[0] for shard in found.shards}
    versions = {folder: storage.list_versions(folder) for folder in folders}
    listed: list[tuple[str, str, tuple[int, ...]]] = []
    for shard in found.shards:
        folder, _, name = shard.uri.rpartition("/")
        listed.append((shard.uri, versions[folder][name], tuple(shard.superseded.tolist())))
    return listed


def read_shards(sources: Sequence[Source]) -> list[Shard]:
    """Reads the footers of all shards of all sources. Unreadable shards have an error."""
    listed = [(index, *shard) for index, source in enumerate(sources) for shard in list_shards(source)]
    with ThreadPoolExecutor(_NUM_THREADS) as threads:
        return list(threads.map(lambda entry: _read_shard(*entry), listed))


def pieces_of(shards: Sequence[Shard], rows_per_piece: int) -> list[Piece]:
    pieces: list[Piece] = []
    first_of_source: dict[int, int] = {}
    for shard in shards:
        first = num_rows = 0
        for group, rows in enumerate(shard.rows):
            num_rows += rows
            if num_rows >= rows_per_piece or group == len(shard.rows) - 1:
                pieces.append(
                    Piece(
                        number=len(pieces),
                        source=shard.source,
                        first_of_source=first_of_source.setdefault(shard.source, len(pieces)),
                        uri=shard.uri,
                        first=first,
                        end=group + 1,
                        num_rows=num_rows,
                        superseded=shard.superseded,
                    )
                )
                first, num_rows = group + 1, 0
    return pieces


def read_rows(piece: Piece) -> Iterator[list[dict[str, Any]]]:
    """Yields the rows of a piece in batches of up to 64, by column name in lower case.

    Raises UnreadableShardError for a corrupted shard, after yielding the rows that can be read, and OSError if storage
    fails.
    """
    reader = _Reader(piece)

    def read_batch() -> pa.RecordBatch | None:
        return storage.retry(reader.read_batch, piece.uri)

    while (batch := _or_unreadable(read_batch, piece.uri)) is not None:
        yield _or_unreadable(partial(_rows, batch), piece.uri)


class _Reader:
    """Resumes where it stopped after storage has failed."""

    def __init__(self, piece: Piece) -> None:
        self._piece = piece
        self._num_read = 0
        self._batches: Iterator[pa.RecordBatch] | None = None

    def read_batch(self) -> pa.RecordBatch | None:
        try:
            if self._batches is None:
                self._batches = self._open()
            batch = next(self._batches, None)
        except BaseException:
            self._batches = None
            raise
        self._num_read += 0 if batch is None else batch.num_rows
        return batch

    def _open(self) -> Iterator[pa.RecordBatch]:
        filesystem, path = storage.resolve(self._piece.uri)
        file = pq.ParquetFile(filesystem.open_input_file(path), buffer_size=_BUFFER_SIZE, pre_buffer=False)
        to_skip = self._num_read
        for batch in file.iter_batches(
            batch_size=ROWS_PER_BATCH,
            row_groups=range(self._piece.first, self._piece.end),
            columns=[name for name in file.schema_arrow.names if name.lower() in COLUMNS],
            use_threads=False,
        ):
            if to_skip < batch.num_rows:
                yield batch.slice(to_skip)
            to_skip = max(0, to_skip - batch.num_rows)


def _read_shard(source: int, uri: str, version: str, superseded: tuple[int, ...]) -> Shard:
    filesystem, path = storage.resolve(uri)

    def read() -> tuple[pq.FileMetaData, pa.Schema, int]:
        with filesystem.open_input_file(path) as file:
            footer = pq.ParquetFile(file)
            return footer.metadata, footer.schema_arrow, file.size()

    try:
        footer, schema, size = _or_unreadable(lambda: storage.retry(read, uri), uri)
    except UnreadableShardError as error:
        return Shard(source=source, uri=uri, version=version, rows=(), error=str(error))
    except OSError as error:
        raise ValueError(f"raw={uri}: cannot be read ({error}); check the bucket and the credentials") from error
    if wrong := _wrong_with(schema):
        return Shard(source=source, uri=uri, version=version, rows=(), error=f"raw={uri}: {wrong}")
    rows = tuple(footer.row_group(index).num_rows for index in range(footer.num_row_groups))
    # Every row takes more than a byte, so a corrupted footer cannot claim billions.
    if any(count < 0 for count in rows) or sum(rows) != footer.num_rows or sum(rows) > size:
        error = f"raw={uri}: is corrupted (its footer counts {footer.num_rows} rows); {_ADVICE}"
        return Shard(source=source, uri=uri, version=version, rows=(), error=error)
    return Shard(source=source, uri=uri, version=version, rows=rows, superseded=superseded)


def _wrong_with(schema: pa.Schema) -> str | None:
    """Returns why a shard with these columns cannot be read."""
    known = {name.lower() for name in schema.names}
    missing = [] if "jpg" in known else ["jpg"]
    missing += [] if known.intersection(CAPTION_COLUMNS) else ["caption"]
    if missing:
        return (
            f"has no column {' nor '.join(missing)}, only {', '.join(schema.names[:12])}; raw shards are what "
            "img2dataset writes with output_format=parquet"
        )
    return wrong_with_columns(schema, frozenset(COLUMNS))


_ADVICE = "download it again, or give --skip-unreadable-shards"


def _or_unreadable(read: Any, uri: str) -> Any:
    """Returns `read()`. Any error that a parquet reader raises on a corrupted file becomes UnreadableShardError."""
    try:
        return read()
    except Exception as error:
        if isinstance(error, OSError) and storage.is_of_storage(error):
            raise
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise UnreadableShardError(
            f"raw={uri}: is not a parquet file, or a corrupted one ({text}); {_ADVICE}"
        ) from error


def _rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    columns: dict[str, list[Any]] = {}
    with_captions: dict[str, pa.Array] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        lower = name.lower()
        if lower in columns or lower in with_captions:
            continue  # the same name in two cases: the first is used
        if lower in CAPTION_COLUMNS:
            with_captions[lower] = column
        elif lower in _TEXTS:
            columns[lower] = texts(column)
        elif lower == "jpg":
            columns[lower] = column.to_pylist()
            if not all(value is None or isinstance(value, bytes) for value in columns[lower]):
                raise ValueError("column jpg does not hold bytes")
        else:
            columns[lower] = [_number(value) for value in column.to_pylist()]
    columns["captions"] = captions(with_captions)
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _number(value: Any) -> float | None:
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        return None


def check_shards(shards: Sequence[Shard], config: CurateConfig) -> None:
    """Raises ValueError for the first shard that cannot be read, unless such shards are to be skipped."""
    unreadable = [shard.error for shard in shards if shard.error]
    if unreadable and not config.skip_unreadable_shards:
        more = f" (and {len(unreadable) - 1} more such)" if len(unreadable) > 1 else ""
        raise ValueError(f"{unreadable[0]}{more}")
    if not any(sum(shard.rows) for shard in shards):
        raise ValueError(f"raw={config.raw[0]}: the shards hold no rows; download again")
