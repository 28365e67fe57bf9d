"""The files of the data set: each holds the samples of a range of shuffle keys, drawn together from all pieces.

A file that is done is recorded, with its part of the manifest and of the counts, in OUT/_curation/files.
"""

import contextlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines import storage
from pipelines.curation.duplicates import KEEP, REASONS, decide
from pipelines.curation.pieces import records_uri, row_of_record
from pipelines.schema import DATASET_SCHEMA, MANIFEST_SCHEMA, write_data_file

_NUM_THREADS = 8  # that wait for object storage


def file_name(number: int) -> str:
    return f"part-{number:06d}.parquet"


def write_file(
    rows_and_marks: pa.Table, *, out: str, work: str, source_names: Sequence[str], rows_per_group: int
) -> tuple[int, int]:
    """Write one file of the data set from its rows of the index; returns its number and that of its samples."""
    number = rows_and_marks.column("file")[0].as_py()
    record = storage.join(work, "files", f"{number:06d}.json")
    with contextlib.suppress(FileNotFoundError):
        return number, read_file_record(record)["num_samples"]
    rows = decide(rows_and_marks)
    kept = rows.filter(pc.field("mark") == KEEP).sort_by([("shuffle_key", "ascending"), ("order", "ascending")])
    manifest = MANIFEST_SCHEMA.empty_table()
    if kept.num_rows:
        samples = pa.Table.from_pylist(_fetch(kept, work, source_names), schema=DATASET_SCHEMA)
        manifest = write_data_file(out, file_name(number), samples, rows_per_group)
    drops: dict[str, dict[str, int]] = {}
    marks, sources = rows.column("mark").to_numpy(), rows.column("source").to_numpy()
    for (source, mark), count in Counter(zip(sources.tolist(), marks.tolist(), strict=True)).items():
        if mark != KEEP:
            drops.setdefault(str(source_names[source]), {})[REASONS[mark]] = count
    kept_by_source = np.bincount(kept.column("source").to_numpy(), minlength=len(source_names)).tolist()
    content = {
        "num_samples": kept.num_rows,
        "kept": dict(zip(source_names, kept_by_source, strict=True)),
        "drops": drops,
        "manifest": manifest.to_pylist(),
    }
    storage.write_bytes(record, json.dumps(content).encode())
    return number, kept.num_rows


def read_file_records(work: str) -> list[dict[str, Any]]:
    """Of all files, in their order."""
    names = storage.list_files(storage.join(work, "files"))
    uris = [storage.join(work, "files", name) for name in names if name.endswith(".json") and storage.is_data(name)]
    with ThreadPoolExecutor(_NUM_THREADS) as threads:
        return list(threads.map(read_file_record, uris))


def read_file_record(uri: str) -> dict[str, Any]:
    return json.loads(storage.read_bytes(uri))


def _fetch(kept: pa.Table, work: str, source_names: Sequence[str]) -> list[Mapping[str, Any]]:
    """The samples of the rows, in their order: neighbours in a run are read at once."""
    entries = kept.select(["source", "piece", "run", "offset", "image_bytes", "bytes"]).to_pylist()
    places: dict[tuple[int, int], list[int]] = {}
    for place, entry in enumerate(entries):
        places.setdefault((entry["piece"], entry["run"]), []).append(place)
    rows: list[Mapping[str, Any]] = [{}] * len(entries)

    def fetch(run: tuple[int, int]) -> None:
        wanted = [(entries[place]["offset"], entries[place]["bytes"]) for place in places[run]]
        records = storage.read_ranges(records_uri(work, *run), wanted)
        for place, record in zip(places[run], records, strict=True):
            row = row_of_record(record, entries[place]["image_bytes"])
            rows[place] = row | {"source": source_names[entries[place]["source"]]}

    with ThreadPoolExecutor(_NUM_THREADS) as threads:
        list(threads.map(fetch, places))
    return rows
