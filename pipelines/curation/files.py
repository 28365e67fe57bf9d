"""Writes the files of the data set. Each holds the samples of a range of shuffle keys, fetched from all pieces.

A finished file is recorded, with its part of the manifest and of the counts, in OUT/_curation/files.
"""

import bisect
import contextlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, NotRequired

import pyarrow as pa
from typing_extensions import TypedDict  # pydantic asks for it before Python 3.12

from groupvit.captions import DEFAULT_TAGGER, mine_nouns
from pipelines import documents, storage
from pipelines.curation.decisions import KeptSample, Row, decide
from pipelines.curation.pieces import records_uri, rest_of_record
from pipelines.dataset.format import MANIFEST_SCHEMA, ORIGINAL, sample_id, write_data_file
from pipelines.dataset.schema import dataset_schema, schema_version_of

_NUM_THREADS = 8  # that wait for object storage


class FileRecord(TypedDict):
    """Counts of a finished file by source, and its part of the manifest."""

    num_samples: documents.Count
    kept: dict[str, documents.Count]
    drops: dict[str, dict[str, documents.Count]]
    captions_kept: dict[str, documents.Count]
    caption_drops: dict[str, dict[str, documents.Count]]
    manifest: list[dict[str, Any]]
    recaptioned: NotRequired[dict[str, documents.Count]]
    """Number of samples by origin of their recaptions. These three are missing if there are none."""
    recaptions_kept: NotRequired[dict[str, documents.Count]]
    recaption_drops: NotRequired[dict[str, dict[str, documents.Count]]]


def file_name(number: int) -> str:
    return f"part-{number:06d}.parquet"


def write_file(
    rows_and_marks: pa.Table,
    *,
    out: str,
    work: str,
    source_names: Sequence[str],
    rows_per_group: int,
    max_captions: int,
    origins: Sequence[str] = (),
    tagger: str = DEFAULT_TAGGER,
) -> tuple[int, int, int]:
    """Writes one file of the data set from its rows of the index.

    Args:
        origins: Names of the origins of recaptions, in the order of their numbers. Without any, the file has schema 2.
        tagger: Finds the nouns of the recaptions that are kept.

    Returns:
        The number of the file, the number of its samples, and the number of samples that these are left of.
    """
    number = rows_and_marks.column("file")[0].as_py()
    record = storage.join(work, "files", f"{number:06d}.json")
    with contextlib.suppress(FileNotFoundError):
        return number, *_counts(read_file_record(record))
    decisions = decide(rows_and_marks, max_captions)
    manifest = MANIFEST_SCHEMA.empty_table()
    if decisions.kept:
        rows = _fetch(decisions.kept, work, source_names, origins, tagger)
        schema = dataset_schema(schema_version_of(recaptioned=bool(origins)))
        samples = pa.Table.from_pylist(rows, schema=schema)
        manifest = write_data_file(out, file_name(number), samples, rows_per_group)

    def by_name(by_source: Mapping[int, Any]) -> dict[str, Any]:
        return {source_names[source]: value for source, value in by_source.items()}

    kept = [sample.row["source"] for sample in decisions.kept]
    content = {
        "num_samples": len(kept),
        "kept": {name: kept.count(source) for source, name in enumerate(source_names)},
        "drops": by_name(decisions.drops),
        "captions_kept": by_name(decisions.captions_kept),
        "caption_drops": by_name(decisions.caption_drops),
        "manifest": manifest.to_pylist(),
    }
    if origins:
        content |= {
            "recaptioned": {origins[origin - 1]: count for origin, count in decisions.recaptioned.items()},
            "recaptions_kept": {origins[origin - 1]: count for origin, count in decisions.recaptions_kept.items()},
            "recaption_drops": {origins[origin - 1]: drops for origin, drops in decisions.recaption_drops.items()},
        }
    storage.write_bytes(record, json.dumps(content).encode())
    return number, *_counts(content)


def read_file_records(work: str) -> list[dict[str, Any]]:
    """Reads the records of all files, in order."""
    names = storage.list_files(storage.join(work, "files"))
    uris = [storage.join(work, "files", name) for name in names if name.endswith(".json") and storage.is_data(name)]
    with ThreadPoolExecutor(_NUM_THREADS) as threads:
        return list(threads.map(read_file_record, uris))


def read_file_record(uri: str) -> dict[str, Any]:
    return documents.read(uri, FileRecord, f"remove {uri}, and its file is made again")


def _counts(record: Mapping[str, Any]) -> tuple[int, int]:
    num_dropped = sum(sum(drops.values()) for drops in record["drops"].values())
    return record["num_samples"], record["num_samples"] + num_dropped


def _fetch(
    kept: Sequence[KeptSample], work: str, source_names: Sequence[str], origins: Sequence[str], tagger: str
) -> list[Mapping[str, Any]]:
    """Reads the samples, in order. Adjacent records of a run are read at once."""
    wanted: dict[tuple[int, int], dict[tuple[int, int], bytes]] = {}  # by run, then range
    for sample in kept:
        wanted.setdefault(_run(sample.row), {})[_range(sample.row)] = b""
        for row in (*sample.brought, *sample.recaptions):
            wanted.setdefault(_run(row), {})[_range_after_image(row)] = b""

    def fetch(run: tuple[int, int]) -> None:
        ranges = list(wanted[run])
        wanted[run].update(zip(ranges, _read_ranges(records_uri(work, *run), ranges), strict=True))

    with ThreadPoolExecutor(_NUM_THREADS) as threads:
        list(threads.map(fetch, wanted))

    recaptions = [[wanted[_run(row)][_range_after_image(row)].decode() for row in sample.recaptions] for sample in kept]
    nouns_of_all = mine_nouns((text for texts in recaptions for text in texts), tagger=tagger) if origins else iter(())
    rows: list[Mapping[str, Any]] = []
    for sample, texts in zip(kept, recaptions, strict=True):
        record, image_bytes = wanted[_run(sample.row)][_range(sample.row)], sample.row["image_bytes"]
        image, own = record[:image_bytes], rest_of_record(record[image_bytes:])
        others = [rest_of_record(wanted[_run(row)][_range_after_image(row)]) for row in sample.brought]
        said = [(own, row["number"]) for row in sample.captions]
        said += [(other, row["number"]) for other, row in zip(others, sample.brought, strict=True)]
        captions = [rest["captions"][number] for rest, number in said]
        nouns = [rest["nouns"][number] for rest, number in said]
        changed: dict[str, Any] = {"image": image, "sample_id": sample_id(image, *captions)}
        if origins:
            names = [origins[row["origin"] - 1] for row in sample.recaptions]
            changed["caption_origins"] = [ORIGINAL] * len(captions) + names
            captions, nouns = captions + texts, [*nouns, *islice(nouns_of_all, len(texts))]
        changed |= {"captions": captions, "nouns": nouns}
        rows.append({**own, **changed, "source": source_names[sample.row["source"]]})
    return rows


def _run(row: Row) -> tuple[int, int]:
    return row["piece"], row["run"]


def _range(row: Row) -> tuple[int, int]:
    """Returns the first byte and the length of a record."""
    return row["offset"], row["bytes"]


def _range_after_image(row: Row) -> tuple[int, int]:
    return row["offset"] + row["image_bytes"], row["bytes"] - row["image_bytes"]


def _read_ranges(uri: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Reads parts of a file, each given by its first byte and its length. Adjacent parts are read at once."""
    filesystem, path = storage.resolve(uri)
    joined: list[list[int]] = []
    for start, length in sorted(ranges):
        if joined and start <= joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], start + length)
        else:
            joined.append([start, start + length])

    def read() -> list[bytes]:
        with filesystem.open_input_file(path) as file:
            return [file.read_at(end - start, start) for start, end in joined]

    contents = storage.retry(read, uri)
    starts = [start for start, _ in joined]
    parts: list[bytes] = []
    for start, length in ranges:
        index = bisect.bisect_right(starts, start) - 1
        offset = start - starts[index]
        parts.append(contents[index][offset : offset + length])
    return parts
