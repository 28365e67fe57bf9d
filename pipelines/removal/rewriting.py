"""Writes a data set without some of its samples. The others keep their ids and their order.

A file without such samples is copied as it is. Finished files are recorded in OUT/_forget, so that the same command
goes on where it was stopped.
"""

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from typing_extensions import TypedDict  # pydantic asks for it before Python 3.12

from pipelines import documents, storage
from pipelines.console.progress import ProgressLine
from pipelines.dataset.format import (
    MANIFEST_SCHEMA,
    SCHEMA_VERSION,
    DatasetInfo,
    digest,
    finish_dataset,
    read_manifest,
    read_row_groups,
    write_data_file,
)
from pipelines.dataset.row_groups import in_threads
from pipelines.local.folder_lock import only_one
from pipelines.provenance import code_version, redact
from pipelines.removal.hits import Hits

REASON = "forgotten"
"""Drop reason of the samples, in dataset.json."""
_WORK = "_forget"
_NUM_THREADS = 4  # each holds a file in memory, twice


class _FileRecord(TypedDict):
    """OUT/_forget/NAME.json: part of the manifest of a finished file."""

    manifest: list[dict[str, Any]]


def write_without(info: DatasetInfo, hits: Hits, out: str, on_written: Callable[[pa.Table], None]) -> DatasetInfo:
    """Writes the data set `info` without `hits` to the folder `out`, or what is missing of it.

    Args:
        on_written: Called with the new manifest when all files are written, before the data set becomes visible.

    Raises:
        ValueError: Nothing is left, or `out` was begun with other samples.
    """
    if len(hits.samples) == info.num_samples:
        raise ValueError(f"all {info.num_samples:,} samples of {info.uri} match: nothing is left for a new data set")
    work = _begin(info, hits, out)
    with only_one(work, "out"):
        manifest = read_manifest(info.uri, MANIFEST_SCHEMA.names)
        ends = [*info.first_groups.tolist()[1:], len(info.rows)]
        removed: dict[int, list[int]] = {}
        for hit in hits.samples:
            removed.setdefault(hit.group, []).append(hit.row)
        rows_per_group = int(np.bincount(info.rows).argmax())

        def write(file: int) -> pa.Table:
            first, end = int(info.first_groups[file]), ends[file]
            rows = [removed.get(group, []) for group in range(first, end)]
            return _write_file(info, info.files[file], manifest.slice(first, end - first), rows, out, rows_per_group)

        parts = []
        with ProgressLine("written", len(info.files), "files") as progress:
            for part in in_threads(write, range(len(info.files)), _NUM_THREADS):
                parts.append(part)
                progress.add(1)
        on_written(pa.concat_tables(parts))
        version = max(info.metadata["schema_version"], SCHEMA_VERSION)
        written = finish_dataset(out, parts, metadata=_metadata(info, hits), schema_version=version)
    storage.remove_folder(work)
    return written


def _begin(info: DatasetInfo, hits: Hits, out: str) -> str:
    """Returns the folder of the finished work. Raises ValueError if it was begun with other samples."""
    work = storage.join(out, _WORK)
    uri = storage.join(work, "terms.json")
    samples = digest(f"{hit.group} {hit.row}" for hit in hits.samples)
    terms = {"data": info.digest, "samples": samples}
    try:
        begun = documents.read(uri, dict[str, Any], f"remove {work}")
    except FileNotFoundError:
        if storage.list_files(storage.join(out, "data")):
            raise ValueError(
                f"out={out}: data/ holds files of something unfinished; remove them, or give another folder"
            ) from None
        storage.write_bytes(uri, json.dumps(terms).encode())
        return work
    if begun != terms:
        raise ValueError(
            f"out={out}: was begun for another data set or other samples; give the same again, or another folder"
        )
    return work


def _write_file(
    info: DatasetInfo,
    name: str,
    manifest: pa.Table,
    removed: list[list[int]],
    out: str,
    rows_per_group: int,
) -> pa.Table:
    """Writes one file, unless that is done. `removed` has rows for each of its groups. Returns its part of the
    manifest."""
    base = name.removeprefix("data/")
    record = storage.join(out, _WORK, f"{base}.json")
    with contextlib.suppress(FileNotFoundError):
        found = documents.read(record, _FileRecord, f"remove {record}, and its file is made again")
        return pa.Table.from_pylist(found["manifest"], schema=MANIFEST_SCHEMA)
    if any(removed) or info.metadata["schema_version"] < SCHEMA_VERSION:
        samples = _rest_of_file(info, name, removed)
        manifest = MANIFEST_SCHEMA.empty_table()
        if samples.num_rows:
            manifest = write_data_file(out, base, samples, rows_per_group)
    else:
        storage.write_bytes(storage.join(out, name), storage.read_bytes(storage.join(info.uri, name)))
    storage.write_bytes(record, json.dumps({"manifest": manifest.to_pylist()}).encode())
    return manifest


def _rest_of_file(info: DatasetInfo, name: str, removed: list[list[int]]) -> pa.Table:
    """Reads all samples of a file but those that are removed."""
    uri = storage.join(info.uri, name)

    def read() -> pa.Table:
        with storage.open_parquet(uri) as file:
            return pa.concat_tables(
                [
                    read_row_groups(file, [index]).take(np.setdiff1d(np.arange(num_rows), rows))
                    for index, (rows, num_rows) in enumerate(zip(removed, _rows_of(file), strict=True))
                ]
            )

    with storage.reporting_corruption(uri, "`groupvit inspect --verify` shows what is corrupted"):
        return storage.retry(read, uri)


def _rows_of(file: Any) -> list[int]:
    return [file.metadata.row_group(index).num_rows for index in range(file.metadata.num_row_groups)]


def _metadata(info: DatasetInfo, hits: Hits) -> dict[str, Any]:
    """Returns what dataset.json of the new data set says beside its counts: what the old one says, and what was
    removed, without naming it."""
    before = {
        "uri": redact(info.uri),
        "digest": info.digest,
        "num_samples": info.num_samples,
        "num_removed": len(hits.samples),
        "code_version": code_version(),
    }
    return {
        **info.metadata,
        "drops": _with_drops(info.metadata.get("drops", {}), Counter(hit.source for hit in hits.samples)),
        "made_by_forget": [*info.metadata.get("made_by_forget", []), before],
    }


def _with_drops(drops: Mapping[str, Any], counts: Mapping[str, int]) -> dict[str, Any]:
    """Adds the removed samples to the drops of a data set, which are by reason, or by source and reason."""
    if any(not isinstance(value, Mapping) for value in drops.values()):
        return {**drops, REASON: drops.get(REASON, 0) + sum(counts.values())}
    result = {source: dict(reasons) for source, reasons in drops.items()}
    for source, count in counts.items():
        of_source = result.setdefault(source, {})
        of_source[REASON] = of_source.get(REASON, 0) + count
    return result
