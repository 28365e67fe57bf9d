"""Recaptions on Ray Data: reads their files in parallel, and joins them with the index of the samples by hash of their
keys. Only the index passes through Ray, about 120 bytes per caption.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
import ray.data

from pipelines import storage
from pipelines.cluster.causes import root_cause
from pipelines.curation.config import CurateConfig
from pipelines.curation.duplicates import DUPLICATE, KEEP, MARKS_SCHEMA, mark_boilerplate, partition_of
from pipelines.curation.index import read_index
from pipelines.curation.recaptions.files import RecaptionFile
from pipelines.curation.recaptions.joining import JOIN_SCHEMA, follow_duplicates, join_recaptions
from pipelines.curation.recaptions.pieces import (
    RecaptionPiece,
    RecaptionReport,
    curate_recaptions,
    read_recaption_report,
    recaptions_uri,
)

_ROWS_PER_PARTITION = 250_000
_PARTITION = pa.field("partition", pa.int32(), nullable=False)


def run_recaptions(pieces: Sequence[RecaptionPiece], config: CurateConfig, work: str) -> Iterator[RecaptionReport]:
    """Curates files of recaptions in any order and yields each report. Raises ValueError for an invalid one."""
    items = [{"piece": json.dumps(asdict(piece))} for piece in pieces]
    reports = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        _curate,  # pyright: ignore[reportArgumentType]
        fn_kwargs={"config": config, "work": work},
        batch_size=1,
    )
    for row in reports.iter_rows():
        if row["error"]:
            raise ValueError(row["error"])
        yield RecaptionReport.from_json(row["report"])


def joined_recaptions(
    ranges: Sequence[Mapping[str, int]],
    recaptions: Sequence[RecaptionPiece],
    num_samples: int,
    num_files: int,
    marks: ray.data.Dataset,
    config: CurateConfig,
    work: str,
) -> ray.data.Dataset:
    """[MARKS_SCHEMA] Joins recaptions with the samples of the index, and marks those that are boilerplate.

    Args:
        ranges: Ranges of pieces of the index: `first` and `end` of each.
        num_samples: Number of samples in the index.
        num_files: Number of files of the data set.
        marks: What `resolve` found. The duplicates among them are held in memory, 20 bytes each.
    """
    num_captions = sum(read_recaption_report(work, piece.number).num_captions for piece in recaptions)
    num_partitions = -(-(num_samples + num_captions) // _ROWS_PER_PARTITION)
    duplicates = ray.put(_duplicates(marks))
    samples = ray.data.from_items(list(ranges)).map_batches(
        _read_samples,  # pyright: ignore[reportArgumentType]
        fn_kwargs={"work": work, "num_files": num_files, "num_partitions": num_partitions},
        batch_size=1,
    )
    numbers = [{"number": piece.number} for piece in recaptions]
    captions = ray.data.from_items(numbers, override_num_blocks=len(numbers)).map_batches(
        _read_recaptions,  # pyright: ignore[reportArgumentType]
        fn_kwargs={"work": work, "num_partitions": num_partitions},
        batch_size=1,
    )
    return (
        samples.union(captions)
        .groupby("partition", num_partitions=num_partitions)
        .map_groups(
            partial(_join, num_partitions=num_partitions, max_captions=config.max_captions), batch_format="pyarrow"
        )
        .groupby("partition", num_partitions=num_partitions)
        .map_groups(
            partial(_finish, max_images=config.max_images_per_caption, duplicates=duplicates), batch_format="pyarrow"
        )
    )


def _curate(batch: Mapping[str, Sequence[str]], *, config: CurateConfig, work: str) -> dict[str, list[str]]:
    """Returns errors instead of raising them, because Ray would add its own stack trace."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is one task per CPU
    values = json.loads(batch["piece"][0])
    file = RecaptionFile(**{**values["file"], "captions": tuple(values["file"]["captions"])})
    try:
        report = curate_recaptions(RecaptionPiece(number=values["number"], file=file), config, work)
        return {"report": [report.to_json()], "error": [""]}
    except Exception as error:
        line = root_cause(error).line
        return {"report": [""], "error": [line if isinstance(error, ValueError) else f"{file.uri}: {line}"]}


def _duplicates(marks: ray.data.Dataset) -> pa.Table:
    """Returns the marks DUPLICATE, ascending by `order`."""
    names = ["order", "keeper", "number"]
    tables = [pa.schema([MARKS_SCHEMA.field(name) for name in names]).empty_table()]
    if marks.count():
        batches: Iterator[Any] = iter(marks.iter_batches(batch_size=None, batch_format="pyarrow"))  # pyright: ignore
        for batch in batches:
            tables.append(batch.filter(pc.field("mark") == DUPLICATE).select(names).cast(tables[0].schema))
    return pa.concat_tables(tables).sort_by("order").combine_chunks()


def _read_samples(batch: Mapping[str, Any], *, work: str, num_files: int, num_partitions: int) -> pa.Table:
    rows = read_index(work, range(int(batch["first"][0]), int(batch["end"][0])), num_files)
    rows = rows.filter((pc.field("number") == 0) & pc.field("join").is_valid())
    return _partitioned(rows.select(JOIN_SCHEMA.names).cast(JOIN_SCHEMA), "join", num_partitions)


def _read_recaptions(batch: Mapping[str, Any], *, work: str, num_partitions: int) -> pa.Table:
    content = storage.read_bytes(recaptions_uri(work, int(batch["number"][0])))
    found = pq.read_table(pa.BufferReader(content)).replace_schema_metadata()
    columns = {
        field.name: found.column(field.name)
        if field.name in found.column_names
        else pa.array(np.zeros(len(found), field.type.to_pandas_dtype()))
        for field in JOIN_SCHEMA
    }
    return _partitioned(pa.table(columns, schema=JOIN_SCHEMA), "join", num_partitions)


def _join(rows: pa.Table, *, num_partitions: int, max_captions: int) -> pa.Table:
    return _partitioned(join_recaptions(rows.select(JOIN_SCHEMA.names), max_captions), "caption", num_partitions)


def _finish(rows: pa.Table, *, max_images: int | None, duplicates: Any) -> pa.Table:
    rows = rows.select(MARKS_SCHEMA.names)
    kept = rows.filter(pc.field("mark") == KEEP)
    rows = pa.concat_tables([mark_boilerplate(kept, max_images), rows.filter(pc.field("mark") != KEEP)])
    return follow_duplicates(rows.cast(MARKS_SCHEMA), ray.get(duplicates))


def _partitioned(rows: pa.Table, column: str, num_partitions: int) -> pa.Table:
    partition = partition_of(rows.column(column).to_numpy(), 0, num_partitions)
    return rows.append_column(_PARTITION, pa.array(partition, pa.int32()))
