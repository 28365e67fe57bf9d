"""The data set contract: what curation and the demo write, and training reads.

DATASET/data/*.parquet     samples, shuffled once at write time, in small row groups
DATASET/manifest.parquet   one row per row group: file, row_group, rows, bytes, digest
DATASET/dataset.json       written last: without it, a data set does not exist
"""

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines import documents, storage
from pipelines.dataset.contents import DatasetDescription, DatasetVersion
from pipelines.dataset.identity import ORIGINAL as ORIGINAL
from pipelines.dataset.identity import digest as digest
from pipelines.dataset.identity import digest_of_manifest as digest_of_manifest
from pipelines.dataset.identity import identity as identity
from pipelines.dataset.identity import original_captions as original_captions
from pipelines.dataset.identity import sample_id as sample_id
from pipelines.dataset.schema import DATASET_SCHEMA as DATASET_SCHEMA
from pipelines.dataset.schema import ONE_CAPTION, ORIGINS, RECAPTIONED_VERSION, schema_version_of
from pipelines.dataset.schema import SCHEMA_VERSION as SCHEMA_VERSION
from pipelines.dataset.schema import dataset_schema as dataset_schema
from pipelines.dataset.unpacking import check_unpacked_size

Item = TypeVar("Item")

MANIFEST_SCHEMA = pa.schema(
    [
        pa.field("file", pa.string(), nullable=False),  # relative to the data set
        pa.field("row_group", pa.int32(), nullable=False),  # index within the file
        pa.field("rows", pa.int32(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),  # bytes to read for the row group
        pa.field("digest", pa.string(), nullable=False),  # hash of its sample ids
    ]
)

DEFAULT_ROWS_PER_GROUP = 128
"""2–4 MB of images, a good size for one ranged read."""
DEFAULT_GROUPS_PER_FILE = 32
_MOST_ROW_GROUPS = 2**27  # of a data set: 17 billion samples
_WRITE_AGAIN = "write the data set again"


@dataclass(frozen=True, kw_only=True, eq=False)
class DatasetInfo:
    """A complete data set. Row groups are numbered across all files, in the order of the manifest."""

    uri: str
    digest: str
    """Equal for equal samples in an equal layout, wherever and whenever they were written."""
    num_samples: int
    files: tuple[str, ...]
    """Relative to `uri`."""
    first_groups: npt.NDArray[np.int64]
    """[len(files)]: number of the first row group of each file."""
    rows: npt.NDArray[np.int32]
    """[number of row groups]: number of rows of each."""
    metadata: Mapping[str, Any]
    """Content of dataset.json: counts, drops, source URIs, config, code version."""
    is_raw: bool = False
    """Whether these are raw shards instead of a data set: see `pipelines.ingest.uncurated`."""

    @property
    def caption_origins(self) -> tuple[str, ...]:
        """Origins of the captions, ORIGINAL first."""
        return (ORIGINAL, *self.metadata.get("recaptions", {}))


def read_row_groups(file: pq.ParquetFile, row_groups: Sequence[int], columns: Sequence[str] | None = None) -> pa.Table:
    """Reads `columns` (default: all there are) of some row groups of a data file, in the types of DATASET_SCHEMA.

    In a file of schema 1, the caption and its nouns become lists with one entry. In a file without `caption_origins`,
    every caption is an original one; who asks for them must ask for `captions`, too. Raises ValueError, without the
    file's name, if they would not fit into memory.
    """
    check_unpacked_size(file, row_groups)
    if columns is not None and ORIGINS.name in columns and ORIGINS.name not in file.schema_arrow.names:
        table = read_row_groups(file, row_groups, [name for name in columns if name != ORIGINS.name])
        lengths = pc.call_function("list_value_length", [table.column("captions")]).to_pylist()
        origins = [[ORIGINAL] * length for length in lengths]
        return table.append_column(ORIGINS, pa.array(origins, ORIGINS.type))
    if "captions" in file.schema_arrow.names:
        return file.read_row_groups(row_groups, columns=columns, use_threads=False)
    if columns is not None:
        columns = ["caption" if name == "captions" else name for name in columns]
    table = file.read_row_groups(row_groups, columns=columns, use_threads=False)
    for name, old in ONE_CAPTION.items():
        if old.name in table.column_names:
            index = table.column_names.index(old.name)
            values = table.column(index).combine_chunks()
            lists = pa.ListArray.from_arrays(pa.array(range(len(values) + 1), pa.int32()), values)
            table = table.set_column(index, DATASET_SCHEMA.field(name), lists)
    return table


def write_dataset(
    uri: str,
    samples: Iterable[Mapping[str, Any]],
    *,
    rows_per_group: int = DEFAULT_ROWS_PER_GROUP,
    groups_per_file: int = DEFAULT_GROUPS_PER_FILE,
    metadata: Mapping[str, Any] | None = None,
    schema_version: int = SCHEMA_VERSION,
) -> DatasetInfo:
    """Writes `samples` as a new data set.

    Args:
        samples: Rows of `schema_version`, already shuffled. Nullable columns may be missing. One file is held in
            memory.

    Raises:
        ValueError: A data set already exists at `uri`, or there are no samples.
    """
    refuse_existing(uri)
    schema = dataset_schema(schema_version)
    manifests = [
        write_data_file(uri, f"part-{index:06d}.parquet", _to_table(rows, schema), rows_per_group)
        for index, rows in enumerate(batched(samples, rows_per_group * groups_per_file))
    ]
    return finish_dataset(uri, manifests, metadata=metadata, schema_version=schema_version)


def refuse_existing(uri: str) -> None:
    """Raises ValueError if a data set exists at `uri`: a visible data set is never changed."""
    if "dataset.json" in storage.list_files(uri):
        raise ValueError(f"{uri}: already holds a data set; give another folder, or remove this one")


def write_data_file(uri: str, name: str, samples: pa.Table, rows_per_group: int = DEFAULT_ROWS_PER_GROUP) -> pa.Table:
    """Writes data/`name` of a data set and returns its part of the manifest. Files can be written in parallel. Those of
    a data set all have the column `caption_origins`, or none has.
    """
    schema = dataset_schema(schema_version_of(recaptioned=ORIGINS.name in samples.column_names))
    buffer = pa.BufferOutputStream()
    metadata: list[pq.FileMetaData] = []
    with pq.ParquetWriter(
        buffer,
        schema,
        # Images are already compressed.
        compression={  # pyright: ignore[reportArgumentType]
            column: "none" if column == "image" else "zstd" for column in schema.names
        },
        use_dictionary=["source", "license"],  # pyright: ignore[reportArgumentType]
        write_statistics=False,
        metadata_collector=metadata,
    ) as writer:
        writer.write_table(samples.select(schema.names).cast(schema), row_group_size=rows_per_group)
    storage.write_bytes(storage.join(uri, "data", name), memoryview(buffer.getvalue()))
    groups = [metadata[0].row_group(index) for index in range(metadata[0].num_row_groups)]
    hashed = ["sample_id", "captions", ORIGINS.name] if ORIGINS.name in schema.names else ["sample_id"]
    return pa.table(
        {
            "file": [f"data/{name}"] * len(groups),
            "row_group": range(len(groups)),
            "rows": [group.num_rows for group in groups],
            "bytes": [row_group_bytes(group) for group in groups],
            "digest": [
                digest(map(identity, samples.select(hashed).slice(start, rows_per_group).to_pylist()))
                for start in range(0, samples.num_rows, rows_per_group)
            ],
        },
        schema=MANIFEST_SCHEMA,
    )


def finish_dataset(
    uri: str,
    manifests: Iterable[pa.Table],
    *,
    metadata: Mapping[str, Any] | None = None,
    schema_version: int = SCHEMA_VERSION,
) -> DatasetInfo:
    """Makes a data set visible: writes its manifest, joined from `manifests` in order, and then dataset.json."""
    manifest = pa.concat_tables([MANIFEST_SCHEMA.empty_table(), *manifests])
    if not manifest.num_rows:
        raise ValueError(f"{uri}: no samples to write; a data set needs at least one")
    buffer = pa.BufferOutputStream()
    pq.write_table(manifest, buffer)
    storage.write_bytes(storage.join(uri, "manifest.parquet"), memoryview(buffer.getvalue()))
    rows = manifest.column("rows").to_numpy()
    description = dict(metadata or {}) | {
        "schema_version": schema_version,
        "num_samples": int(rows.sum(dtype=np.int64)),
        "num_row_groups": manifest.num_rows,
        "digest": digest_of_manifest(manifest),
    }
    storage.write_bytes(storage.join(uri, "dataset.json"), (json.dumps(description, indent=2) + "\n").encode())
    return open_dataset(uri)


def open_dataset(uri: str) -> DatasetInfo:
    """Reads and checks dataset.json and the manifest. Raises ValueError, in one line, if the data set is invalid."""
    uri = storage.absolute(uri)
    try:
        content = storage.read_bytes(storage.join(uri, "dataset.json"), documents.MAX_BYTES)
    except (FileNotFoundError, NotADirectoryError) as error:
        storage.check_bucket(uri)
        raise ValueError(f"{uri}: no dataset.json; give the folder of a data set whose writing has finished") from error
    source = storage.join(uri, "dataset.json")
    version = documents.parse(content, DatasetVersion, source, _WRITE_AGAIN)["schema_version"]
    if version > RECAPTIONED_VERSION:
        raise ValueError(
            f"{uri}: schema_version {version} is newer than {RECAPTIONED_VERSION}, which this code reads; upgrade it"
        )
    description = documents.parse(content, DatasetDescription, source, _WRITE_AGAIN)
    manifest = read_manifest(uri)
    rows = manifest.column("rows").to_numpy()
    num_samples = int(rows.sum(dtype=np.int64))
    if not num_samples:
        raise ValueError(f"{uri}: the data set is empty; give one with samples")
    if num_samples != description["num_samples"] or rows.min() < 1:
        raise ValueError(
            f"{uri}: manifest.parquet counts {num_samples} samples, dataset.json {description['num_samples']}; "
            f"{_WRITE_AGAIN}"
        )
    groups = manifest.column("row_group").to_numpy()
    first_groups = np.flatnonzero(groups == 0)
    in_order = (groups[1:] == 0) | (groups[1:] == groups[:-1] + 1)
    num_files = len(manifest.column("file").unique())
    if groups[0] != 0 or not in_order.all() or num_files != len(first_groups):
        raise ValueError(f"{uri}: manifest.parquet does not list the row groups file by file; {_WRITE_AGAIN}")
    return DatasetInfo(
        uri=uri,
        digest=description["digest"],
        num_samples=num_samples,
        files=tuple(manifest.column("file").take(first_groups).to_pylist()),
        first_groups=first_groups,
        rows=rows,
        metadata=description,
    )


def read_manifest(uri: str, columns: Sequence[str] = ("file", "row_group", "rows")) -> pa.Table:
    """Reads columns, including `file`, of the manifest. Raises ValueError if it is corrupted or a file is missing."""
    place = storage.join(uri, "manifest.parquet")
    schema = pa.schema([MANIFEST_SCHEMA.field(name) for name in columns])
    with storage.reporting_corruption(place, _WRITE_AGAIN), storage.open_parquet(place) as file:
        if file.metadata.num_rows > _MOST_ROW_GROUPS:
            raise ValueError(f"it counts {file.metadata.num_rows:,} row groups, more than {_MOST_ROW_GROUPS:,}")
        manifest = file.read(list(columns)).select(list(columns)).cast(schema)
        manifest.validate(full=True)
    names = [documents.in_folder(name, place, _WRITE_AGAIN) for name in manifest.column("file").unique().to_pylist()]
    missing = sorted(set(names) - {f"data/{name}" for name in storage.list_files(storage.join(uri, "data"))})
    if missing:
        raise ValueError(f"{uri}: {len(missing)} files of the manifest are missing, first {missing[0]}; {_WRITE_AGAIN}")
    documents.refuse_links_out(uri, names)
    return manifest


def row_group_bytes(group: pq.RowGroupMetaData) -> int:
    """Number of bytes of a row group, as in the manifest's column `bytes`."""
    return sum(group.column(column).total_compressed_size for column in range(group.num_columns))


def _to_table(rows: list[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    try:
        return pa.Table.from_pylist(rows, schema=schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(f"samples: do not fit DATASET_SCHEMA: {error}") from error


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yields the items in lists of `size`; the last may be shorter."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
