"""Lets training read raw shards without curation: downloaded images, with captions cleaned and nouns mined when read.

For a first look only. They include what `groupvit curate` would drop: duplicates, boilerplate captions, images that are
too small. Nouns are mined again in every epoch.
"""

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.curation.text import clean_caption
from pipelines.dataset.format import DatasetInfo, open_dataset, sample_id
from pipelines.dataset.raw_columns import CAPTION_COLUMNS, captions, wrong_with_columns
from pipelines.dataset.raw_shards import has_shards, raw_shards
from pipelines.dataset.unpacking import check_unpacked_size

_COLUMNS = ("jpg", "status")
_NUM_READERS = 16  # that wait for object storage


def open_source(uri: str) -> DatasetInfo:
    """Opens a data set, or raw shards if there is none. Raises ValueError if they are invalid."""
    if "dataset.json" not in storage.list_files(uri) and has_shards(uri):
        return open_raw_shards(uri)
    return open_dataset(uri)


def open_raw_shards(uri: str) -> DatasetInfo:
    """Describes the downloaded samples of raw shards. Row groups are those of the shards, with fewer rows."""
    shards = raw_shards(uri).shards
    with ThreadPoolExecutor(_NUM_READERS) as readers:
        rows = list(readers.map(lambda shard: _count_rows(shard.uri), shards))
    counts = np.concatenate([np.asarray(groups, dtype=np.int32) for groups in rows])
    if not counts.sum():
        raise ValueError(
            f"{uri}: no image of its raw shards arrived; see what `groupvit download` says of the failures"
        )
    base = storage.absolute(uri)
    files = tuple(shard.uri.removeprefix(base).lstrip("/") for shard in shards)
    lines = [f"{name} {groups}" for name, groups in zip(files, rows, strict=True)]
    return DatasetInfo(
        uri=base,
        digest=hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32],
        num_samples=int(counts.sum()),
        files=files,
        first_groups=np.cumsum([0, *(len(groups) for groups in rows[:-1])]),
        rows=counts,
        metadata={},
        is_raw=True,
    )


def read_raw_row_group(file: pq.ParquetFile, row_group: int) -> pa.Table:
    """Reads image and captions (unchanged) of the downloaded samples of a row group."""
    check_unpacked_size(file, [row_group])
    table = file.read_row_group(row_group, columns=[*_COLUMNS, *_caption_columns(file)], use_threads=False)
    arrived, texts = _arrived(table)
    columns = {"image": table.column("jpg"), "captions": pa.array(texts, pa.list_(pa.large_string()))}
    return pa.table(columns).filter(arrived)


def with_captions(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Cleans the captions of rows of `read_raw_row_group`, and adds sample ids."""
    cleaned = [{**row, "captions": [clean_caption(text) for text in row["captions"]]} for row in rows]
    return [{**row, "sample_id": sample_id(row["image"], *row["captions"])} for row in cleaned]


def _count_rows(uri: str) -> list[int]:
    """Counts the downloaded samples of each row group."""
    advice = "download it again"
    with storage.reporting_corruption(uri, advice):
        file = storage.open_parquet(uri)
    with file:
        found, names = _caption_columns(file), file.schema_arrow.names
        missing = [name for name in _COLUMNS if name not in names] + ([] if found else ["caption"])
        if missing:
            raise ValueError(f"{uri}: has no column {missing[0]}; raw shards are what img2dataset writes as parquet")
        if wrong := wrong_with_columns(file.schema_arrow, frozenset([*_COLUMNS, *CAPTION_COLUMNS])):
            raise ValueError(f"{uri}: {wrong}")
        with storage.reporting_corruption(uri, advice):
            groups = [file.read_row_group(index, columns=["status", *found]) for index in range(file.num_row_groups)]
            return [_arrived(group)[0].to_pylist().count(True) for group in groups]


def _caption_columns(file: pq.ParquetFile) -> list[str]:
    return [name for name in CAPTION_COLUMNS if name in file.schema_arrow.names]


def _arrived(table: pa.Table) -> tuple[pa.Array, list[list[str]]]:
    """Returns which rows have an image and a caption, and the captions of all rows, without missing ones."""
    found = {name: table.column(name).combine_chunks() for name in CAPTION_COLUMNS if name in table.column_names}
    texts = [[text for text in row if text is not None] for row in captions(found)]
    success = pc.equal(table.column("status"), "success")  # pyright: ignore[reportAttributeAccessIssue]
    has_caption = pa.array([bool(row) for row in texts], pa.bool_())
    return pc.and_(success, has_caption).combine_chunks(), texts  # pyright: ignore[reportAttributeAccessIssue]
