"""Raw shards in parquet: those of img2dataset, and those of Hugging Face's `datasets`, whose images are structs of
bytes and path. img2dataset writes row groups of 100 rows. A shard with huge ones is read in small batches, too.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.curation.formats.columns import USUAL_NAMES, find_columns, number_of, present, sha256_of, shown
from pipelines.curation.formats.shard import (
    ROWS_PER_BATCH,
    SKIP_ADVICE,
    Columns,
    Piece,
    Row,
    Shard,
    UnreadableShardError,
    or_unreadable,
)
from pipelines.dataset.raw_columns import CAPTION_COLUMNS, captions, is_bytes, texts, wrong_with_column

_OF_IMG2DATASET = (
    *("jpg", *CAPTION_COLUMNS),
    *("row", "url", "key", "status", "error_message", "sha256", "license"),
    *("similarity", "nsfw", "punsafe", "pwatermark"),
)
"""Columns to read, by name in lower case, because data sets differ in case."""
_NUMBERS = frozenset({"row", "similarity", "punsafe", "pwatermark"})
_BUFFER_SIZE = 2**22  # bytes to read ahead, per column
_KIND = "a parquet file"
_IMG2DATASET, _HUGGING_FACE, _OTHER = "img2dataset's parquet", "Hugging Face parquet", "parquet"


def read_shard(
    source: int, uri: str, version: str, superseded: tuple[int, ...], wanted: Mapping[str, Sequence[str]]
) -> Shard:
    """Describes a shard by its footer. `wanted`: see `pipelines.curation.formats.columns.find_columns`."""
    filesystem, path = storage.resolve(uri)

    def read() -> tuple[pq.FileMetaData, pa.Schema, int]:
        with filesystem.open_input_file(path) as file:
            footer = pq.ParquetFile(file)
            return footer.metadata, footer.schema_arrow, file.size()

    def refused(error: str) -> Shard:
        return Shard(source=source, uri=uri, version=version, rows=(), error=error)

    try:
        footer, schema, size = or_unreadable(lambda: storage.retry(read, uri), uri, _KIND)
    except UnreadableShardError as error:
        return refused(str(error))
    except OSError as error:
        raise ValueError(f"raw={uri}: cannot be read ({error}); check the bucket and the credentials") from error
    try:
        kind, columns = _columns_of(schema, wanted)
    except ValueError as error:
        return refused(f"raw={uri}: {error}")
    rows = tuple(footer.row_group(index).num_rows for index in range(footer.num_row_groups))
    # Every row takes more than a byte, so a corrupted footer cannot claim billions.
    if any(count < 0 for count in rows) or sum(rows) != footer.num_rows or sum(rows) > size:
        return refused(f"raw={uri}: is corrupted (its footer counts {footer.num_rows} rows); {SKIP_ADVICE}")
    image = dict(columns)["jpg"]
    if sum(rows) and _holds_only_paths(footer, schema.field(schema.names.index(image))):
        return refused(f"raw={uri}: column {image} holds only the paths of image files, not their bytes; {_EMBED}")
    return Shard(
        source=source,
        uri=uri,
        version=version,
        rows=rows,
        superseded=superseded,
        columns=columns,
        description=_described(kind, schema, columns),
    )


def read_rows(piece: Piece) -> Iterator[list[Row]]:
    """Yields the rows of a piece in batches of up to 64.

    Raises UnreadableShardError for a corrupted shard, after yielding the rows that can be read, and OSError if storage
    fails.
    """
    reader = _Reader(piece)

    def read_batch() -> pa.RecordBatch | None:
        return storage.retry(reader.read_batch, piece.uri)

    while (batch := or_unreadable(read_batch, piece.uri, _KIND)) is not None:
        yield or_unreadable(partial(_rows, batch, piece.columns), piece.uri, _KIND)


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
        used = {name for _, name in self._piece.columns}
        to_skip = self._num_read
        for batch in file.iter_batches(
            batch_size=ROWS_PER_BATCH,
            row_groups=range(self._piece.first, self._piece.end),
            columns=[
                f"{field.name}.bytes" if pa.types.is_struct(field.type) else field.name
                for field in file.schema_arrow
                if field.name in used
            ],
            use_threads=False,
        ):
            if to_skip < batch.num_rows:
                yield batch.slice(to_skip)
            to_skip = max(0, to_skip - batch.num_rows)


def _rows(batch: pa.RecordBatch, columns: Columns) -> list[Row]:
    values: dict[str, list[Any]] = {}
    with_captions: list[tuple[str, pa.Array]] = []
    trusted = "status" in dict(columns)  # img2dataset has computed the hashes
    for field, name in columns:
        column = batch.column(batch.schema.names.index(name))
        if field in CAPTION_COLUMNS:
            with_captions.append((field, column))
        elif field == "jpg":
            if pa.types.is_struct(column.type):
                column = pc.call_function("struct_field", [column], pc.StructFieldOptions("bytes"))
            values[field] = column.to_pylist()
            if not all(value is None or isinstance(value, bytes) for value in values[field]):
                raise ValueError(f"column {name} does not hold bytes")
        elif field in _NUMBERS:
            values[field] = [number_of(value) for value in column.to_pylist()]
        elif field == "sha256" and not trusted:
            values[field] = [sha256_of(value) for value in texts(column)]
        else:
            values[field] = texts(column)
    values["captions"] = _captions(with_captions)
    return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]


def _captions(columns: Sequence[tuple[str, pa.Array]]) -> list[list[str | None]]:
    """Returns the captions of each row. `captions` precedes `caption`; several columns `caption` are joined."""
    if dict(columns).keys() == {"caption"} and len(columns) > 1:
        rows = zip(*(captions({"caption": column}) for _, column in columns), strict=True)
        return [present([text for part in row for text in part]) for row in rows]
    return captions(dict(columns))


def _columns_of(schema: pa.Schema, wanted: Mapping[str, Sequence[str]]) -> tuple[str, Columns]:
    """Returns the kind of parquet, and where the values are. Raises ValueError, without the file, if it is unusable."""
    by_lower: dict[str, str] = {}
    for name in schema.names:
        by_lower.setdefault(name.lower(), name)  # the same name in two cases: the first is used
    images = _image_features(schema)
    kind = _HUGGING_FACE if images else _OTHER
    if not wanted and not images and "jpg" in by_lower and not by_lower.keys().isdisjoint(CAPTION_COLUMNS):
        columns = tuple((ours, by_lower[ours]) for ours in _OF_IMG2DATASET if ours in by_lower)
        kind = _IMG2DATASET
    else:
        image = wanted.get("image") or [_image_column(schema, images, by_lower)]
        found = find_columns(schema.names, {**wanted, "image": image} if image[0] else wanted, tuple(USUAL_NAMES))
        columns = tuple(("jpg" if field == "image" else field, name) for field, name in found)
        if {"jpg", "status"} <= by_lower.keys() and not images:
            others = ("row", "key", "status", "error_message")
            columns += tuple((ours, by_lower[ours]) for ours in others if ours in by_lower)
    missing = ["jpg" if any(field in CAPTION_COLUMNS for field, _ in columns) else "jpg nor caption"]
    if "jpg" in dict(columns):
        missing = [] if any(field in CAPTION_COLUMNS for field, _ in columns) else ["caption"]
    if missing:
        raise ValueError(f"has no column {missing[0]}, only {shown(schema.names)}; {_NAME_THEM}")
    for field, name in columns:
        if wrong := _wrong_with(schema.field(schema.names.index(name)), field):
            raise ValueError(wrong)
    return kind, columns


_NAME_THEM = "raw shards have images and captions: name their columns with --columns image=… caption=…"
_EMBED = (
    "write the files into it (ds.with_format('arrow').map(datasets.table.embed_table_storage, batched=True)), or give "
    "the folder of images with a metadata.csv"
)


def _wrong_with(field: pa.Field, ours: str) -> str | None:
    if ours == "jpg" and pa.types.is_struct(field.type):
        index = field.type.get_field_index("bytes")
        if index >= 0 and (is_bytes(kind := field.type.field(index).type) or pa.types.is_null(kind)):
            return None
    wrong = wrong_with_column(field, ours)
    is_path = ours == "jpg" and (pa.types.is_string(field.type) or pa.types.is_large_string(field.type))
    return f"{wrong}; {_EMBED}" if wrong and is_path else wrong


def _image_column(schema: pa.Schema, images: Sequence[str], by_lower: Mapping[str, str]) -> str:
    """Returns the column of images, or nothing: that with the most usual name among those of bytes and those that
    `datasets` declares, else the only one. Raises ValueError if it may be several.
    """
    usual = [by_lower[name] for name in USUAL_NAMES["image"] if name in by_lower]
    fitting = [name for name in usual if name in images or is_bytes(schema.field(schema.names.index(name)).type)]
    if fitting or not images:
        return next(iter(fitting), "")
    if len(images) > 1:
        raise ValueError(f"has several columns of images: {shown(images)}; choose one with --columns image=…")
    return images[0]


def _image_features(schema: pa.Schema) -> list[str]:
    """Returns the columns that `datasets` declares to be images, and those that look like them."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = [name for name, feature in features.items() if feature.get("_type") == "Image"]
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError):  # not declared, or not as it should be
        names = []
    structs = {field.name for field in schema if pa.types.is_struct(field.type) and _is_image_struct(field.type)}
    return [name for name in schema.names if name in structs or (name in names and name in schema.names)]


def _is_image_struct(kind: pa.DataType) -> bool:
    return {kind.field(index).name for index in range(kind.num_fields)} == {"bytes", "path"}


def _holds_only_paths(footer: pq.FileMetaData, image: pa.Field) -> bool:
    """Whether all bytes of a column of images are null, as far as the statistics in the footer say."""
    if not pa.types.is_struct(image.type):
        return False
    if pa.types.is_null(image.type.field("bytes").type):
        return True
    path = f"{image.name}.bytes"
    for index in range(footer.num_row_groups):
        group = footer.row_group(index)
        chunks = [group.column(number) for number in range(group.num_columns)]
        chunk = next((chunk for chunk in chunks if chunk.path_in_schema == path), None)
        if chunk is None or chunk.statistics is None or not chunk.statistics.has_null_count:
            return False
        if chunk.statistics.null_count < group.num_rows:
            return False
    return True


def _described(kind: str, schema: pa.Schema, columns: Columns) -> str:
    """Says in words what a shard is, and where its values come from."""
    image = dict(columns)["jpg"]
    part = ".bytes" if pa.types.is_struct(schema.field(schema.names.index(image)).type) else ""
    named = [name for field, name in columns if field in CAPTION_COLUMNS]
    others = [name for field, name in columns if field in ("url", "license", "sha256")]
    return f"{kind}: images in {image}{part}, captions in {', '.join(named[:6])}" + (
        f"; also {', '.join(others)}" if others else ""
    )
