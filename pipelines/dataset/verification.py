"""Re-reads a data set and compares it with its manifest.

Does not detect changed nouns, source, url, license or sha256 in a row that is still readable, because `sample_id` only
hashes image and original captions. Recaptions are in the digest of their row group.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from groupvit.decode import decode_image
from pipelines import storage
from pipelines.console.progress import ProgressLine
from pipelines.dataset.format import (
    MANIFEST_SCHEMA,
    DatasetInfo,
    dataset_schema,
    digest,
    digest_of_manifest,
    identity,
    original_captions,
    read_manifest,
    read_row_groups,
    row_group_bytes,
    sample_id,
)
from pipelines.dataset.row_groups import Run, in_threads, runs_of

MAX_PROBLEMS_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The result of a verification."""

    num_samples_read: int
    num_problems: int
    problems: tuple[str, ...]
    """The first problems, one line each."""
    orphans: tuple[str, ...]
    """Files in data/ that the manifest does not name. They are harmless."""


def verify(info: DatasetInfo) -> Verification:
    """Checks every file, row group and sample of a data set that `open_dataset` accepts.

    Memory: some row groups, and 16 bytes per sample to find duplicates.
    """
    manifest = read_manifest(info.uri, MANIFEST_SCHEMA.names)
    num_problems = 0
    shown: list[str] = []

    def note(problems: Iterable[str]) -> None:
        nonlocal num_problems
        for problem in problems:
            num_problems += 1
            if num_problems <= MAX_PROBLEMS_SHOWN:
                shown.append(problem)

    if digest_of_manifest(manifest) != info.digest:
        note([f"dataset.json: digest {info.digest} is not that of manifest.parquet, {digest_of_manifest(manifest)}"])
    ids = bytearray()  # 16 bytes each
    num_read = 0
    with ProgressLine("verified", info.num_samples, "samples") as progress:
        for checked in in_threads(lambda run: _check(info, manifest, run), runs_of(info, np.arange(len(info.rows)))):
            note(checked.problems)
            ids += checked.ids
            num_read += checked.num_samples
            progress.add(checked.num_expected, f"{num_problems:,} problems")
    note(_duplicates(ids))
    present = {f"data/{name}" for name in storage.list_files(storage.join(info.uri, "data"))}
    return Verification(
        num_samples_read=num_read,
        num_problems=num_problems,
        problems=tuple(shown),
        orphans=tuple(sorted(present - set(info.files))),
    )


@dataclass(frozen=True, kw_only=True)
class _Checked:
    """The result for a few row groups of one file."""

    num_expected: int
    num_samples: int
    ids: bytes
    problems: list[str]


def _check(info: DatasetInfo, manifest: pa.Table, run: Run) -> _Checked:
    name, first = info.files[run.file], int(info.first_groups[run.file])
    uri = storage.join(info.uri, name)
    num_expected = int(info.rows[list(run.groups)].sum())
    problems: list[str] = []
    ids = bytearray()
    num_samples = 0
    try:
        file = storage.open_parquet(uri)
        if not file.schema_arrow.equals(dataset_schema(info.metadata["schema_version"])):
            raise ValueError("its columns or their types are not those of a data set")
    except Exception as error:  # Arrow raises errors of any kind on corrupted files
        problem = f"{name} row groups {run.groups[0] - first} to {run.groups[-1] - first}: cannot be read: {error}"
        return _Checked(num_expected=num_expected, num_samples=0, ids=b"", problems=[_one_line(problem)])
    num_groups = int(np.append(info.first_groups, len(info.rows))[run.file + 1]) - first
    if run.groups[0] == first and file.metadata.num_row_groups != num_groups:
        problems.append(f"{name}: has {file.metadata.num_row_groups} row groups, the manifest counts {num_groups}")
    for group in run.groups:
        place = f"{name} row group {group - first}"
        entry = manifest.slice(group, 1).to_pylist()[0]
        try:
            table = _read(file, uri, group - first)
            rows = table.to_pylist()
            problems += [f"{place}: {problem}" for problem in _wrong_with_group(file, rows, entry)]
        except Exception as error:
            problems.append(_one_line(f"{place}: cannot be read: {error}"))
            continue
        num_samples += len(rows)
        for index, row in enumerate(rows):
            problems += [f"{place} row {index}: {problem}" for problem in _wrong_with_sample(row)]
            if _is_id(row["sample_id"]):
                ids += bytes.fromhex(row["sample_id"])
    return _Checked(num_expected=num_expected, num_samples=num_samples, ids=bytes(ids), problems=problems)


def _read(file: pq.ParquetFile, uri: str, row_group: int) -> pa.Table:
    table = storage.retry(lambda: read_row_groups(file, [row_group]), uri)
    table.validate(full=True)  # otherwise Arrow would follow corrupted text and offsets
    return table


def _wrong_with_group(file: pq.ParquetFile, rows: list[dict[str, Any]], entry: Mapping[str, Any]) -> Iterable[str]:
    if len(rows) != entry["rows"]:
        yield f"has {len(rows)} rows, the manifest counts {entry['rows']}"
    num_bytes = row_group_bytes(file.metadata.row_group(entry["row_group"]))
    if num_bytes != entry["bytes"]:
        yield f"has {num_bytes} bytes, the manifest counts {entry['bytes']}"
    if digest(map(identity, rows)) != entry["digest"]:
        what = "sample ids and recaptions" if rows and "caption_origins" in rows[0] else "sample ids"
        yield f"its {what} do not have the digest in the manifest"


def _wrong_with_sample(row: Mapping[str, Any]) -> Iterable[str]:
    if len(row.get("caption_origins", row["captions"])) != len(row["captions"]):
        yield f"has {len(row['captions'])} captions, and origins of {len(row['caption_origins'])}"
    captions = original_captions(row)
    if not captions or sample_id(row["image"], *captions) != row["sample_id"]:
        yield f"image or caption changed: they do not make sample_id {row['sample_id'][:32]!r}"
    if len(row["nouns"]) != len(row["captions"]):
        yield f"has {len(row['captions'])} captions, and nouns for {len(row['nouns'])}"
    try:
        height, width, _ = decode_image(row["image"]).shape
    except ValueError as error:
        yield _one_line(str(error))
        return
    if (width, height) != (row["width"], row["height"]):
        yield f"image is {width}×{height} pixels, its columns say {row['width']}×{row['height']}"


def _is_id(text: str) -> bool:
    return len(text) == 32 and set(text) <= set("0123456789abcdef")


def _duplicates(ids: bytearray) -> Iterable[str]:
    """Yields one problem per repeated sample. Sorts `ids` in place."""
    samples = np.frombuffer(ids, dtype="S16")
    samples.sort()
    for index in np.flatnonzero(samples[1:] == samples[:-1]):
        yield f"sample_id {bytes(ids[16 * index : 16 * index + 16]).hex()}: is in the data set again"


def _one_line(text: str) -> str:
    return " ".join(text.split())
