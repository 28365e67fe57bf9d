"""The data set contract: what curation and the demo write, and training reads.

DATASET/data/*.parquet     samples, shuffled once at write time, in small row groups
DATASET/manifest.parquet   one row per row group: file, row_group, rows, bytes, digest
DATASET/dataset.json       written last: without it, a data set does not exist
"""

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import documents, storage
from pipelines.dataset.contents import DatasetDescription, DatasetVersion
from pipelines.dataset.unpacking import check_unpacked_size

Item = TypeVar("Item")

SCHEMA_VERSION = 2

DATASET_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),  # content hash of image and captions
        pa.field("image", pa.binary(), nullable=False),  # JPEG or WebP
        pa.field("captions", pa.list_(pa.string()), nullable=False),  # at least one; cleaned, not lower-cased
        pa.field("nouns", pa.list_(pa.list_(pa.string())), nullable=False),  # nouns of each caption; may be empty
        pa.field("width", pa.int32(), nullable=False),  # of `image`, pixels
        pa.field("height", pa.int32(), nullable=False),
        pa.field("source", pa.dictionary(pa.int32(), pa.string())),  # the data set that the sample came from
        pa.field("url", pa.string()),
        pa.field("license", pa.string()),
        pa.field("sha256", pa.string()),  # of the original file
    ]
)

_ONE_CAPTION = {
    "captions": pa.field("caption", pa.string(), nullable=False),
    "nouns": pa.field("nouns", pa.list_(pa.string()), nullable=False),
}
"""Columns that data sets of schema 1 have instead of these."""

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


def sample_id(image: bytes, *captions: str) -> str:
    """Hashes an image and its captions, in order, to 32 hexadecimal digits. Stable across re-runs."""
    digest = hashlib.sha256(hashlib.sha256(image).digest())  # hashed apart, so that no byte can move between the two
    if len(captions) == 1:
        digest.update(captions[0].encode())  # the same id as in data sets of schema 1
    else:
        for caption in captions:
            digest.update(hashlib.sha256(caption.encode()).digest())
    return digest.hexdigest()[:32]


def dataset_schema(version: int) -> pa.Schema:
    """Returns the columns of a data set of schema `version`."""
    if version == SCHEMA_VERSION:
        return DATASET_SCHEMA
    return pa.schema([_ONE_CAPTION.get(field.name, field) for field in DATASET_SCHEMA])


def read_row_groups(file: pq.ParquetFile, row_groups: Sequence[int], columns: Sequence[str] | None = None) -> pa.Table:
    """Reads `columns` (default: all) of some row groups of a data file, in the types of DATASET_SCHEMA.

    In a file of schema 1, the caption and its nouns become lists with one entry. Raises ValueError, without the file's
    name, if they would not fit into memory.
    """
    check_unpacked_size(file, row_groups)
    if "captions" in file.schema_arrow.names:
        return file.read_row_groups(row_groups, columns=columns, use_threads=False)
    if columns is not None:
        columns = ["caption" if name == "captions" else name for name in columns]
    table = file.read_row_groups(row_groups, columns=columns, use_threads=False)
    for name, old in _ONE_CAPTION.items():
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
) -> DatasetInfo:
    """Writes `samples` as a new data set.

    Args:
        samples: Rows of DATASET_SCHEMA, already shuffled. Nullable columns may be missing. One file is held in memory.

    Raises:
        ValueError: A data set already exists at `uri`, or there are no samples.
    """
    refuse_existing(uri)
    manifests = [
        write_data_file(uri, f"part-{index:06d}.parquet", _to_table(rows), rows_per_group)
        for index, rows in enumerate(batched(samples, rows_per_group * groups_per_file))
    ]
    return finish_dataset(uri, manifests, metadata=metadata)


def refuse_existing(uri: str) -> None:
    """Raises ValueError if a data set exists at `uri`: a visible data set is never changed."""
    if "dataset.json" in storage.list_files(uri):
        raise ValueError(f"{uri}: already holds a data set; give another folder, or remove this one")


def write_data_file(uri: str, name: str, samples: pa.Table, rows_per_group: int = DEFAULT_ROWS_PER_GROUP) -> pa.Table:
    """Writes data/`name` of a data set and returns its part of the manifest. Files can be written in parallel."""
    buffer = pa.BufferOutputStream()
    metadata: list[pq.FileMetaData] = []
    with pq.ParquetWriter(
        buffer,
        DATASET_SCHEMA,
        # Images are already compressed.
        compression={  # pyright: ignore[reportArgumentType]
            column: "none" if column == "image" else "zstd" for column in DATASET_SCHEMA.names
        },
        use_dictionary=["source", "license"],  # pyright: ignore[reportArgumentType]
        write_statistics=False,
        metadata_collector=metadata,
    ) as writer:
        writer.write_table(samples.cast(DATASET_SCHEMA), row_group_size=rows_per_group)
    storage.write_bytes(storage.join(uri, "data", name), memoryview(buffer.getvalue()))
    groups = [metadata[0].row_group(index) for index in range(metadata[0].num_row_groups)]
    return pa.table(
        {
            "file": [f"data/{name}"] * len(groups),
            "row_group": range(len(groups)),
            "rows": [group.num_rows for group in groups],
            "bytes": [row_group_bytes(group) for group in groups],
            "digest": [
                digest(samples.column("sample_id").slice(start, rows_per_group).to_pylist())
                for start in range(0, samples.num_rows, rows_per_group)
            ],
        },
        schema=MANIFEST_SCHEMA,
    )


def finish_dataset(
    uri: str, manifests: Iterable[pa.Table], *, metadata: Mapping[str, Any] | None = None
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
        "schema_version": SCHEMA_VERSION,
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
    if version > SCHEMA_VERSION:
        raise ValueError(
            f"{uri}: schema_version {version} is newer than {SCHEMA_VERSION}, which this code reads; upgrade it"
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


def digest_of_manifest(manifest: pa.Table) -> str:
    """Hashes a data set, from the columns `rows` and `digest`."""
    return digest(f"{group['rows']} {group['digest']}" for group in manifest.select(["rows", "digest"]).to_pylist())


def digest(lines: Iterable[str]) -> str:
    """Hashes lines to 32 hexadecimal digits. For a row group, the lines are its sample ids."""
    hasher = hashlib.sha256()
    for line in lines:
        hasher.update(f"{line}\n".encode())
    return hasher.hexdigest()[:32]


def _to_table(rows: list[Mapping[str, Any]]) -> pa.Table:
    try:
        return pa.Table.from_pylist(rows, schema=DATASET_SCHEMA)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(f"samples: do not fit DATASET_SCHEMA: {error}") from error


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yields the items in lists of `size`; the last may be shorter."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
