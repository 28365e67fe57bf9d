"""Finds the samples of a data set that match the lists. Reads images only if hashes are asked for that it has not
stored."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.console.progress import ProgressLine
from pipelines.dataset.format import DatasetInfo
from pipelines.dataset.row_groups import Run, in_threads, read_columns, runs_of
from pipelines.removal.entries import Entries

_NUM_EXAMPLES = 3


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A sample that matches."""

    group: int
    """Row group, numbered across all files."""
    row: int
    """Index within the row group."""
    sample_id: str
    url: str | None
    source: str
    """Name of the data set that it came from."""
    entries: tuple[int, ...]
    """Numbers of the entries that it matches; never empty."""


@dataclass(frozen=True, kw_only=True)
class Hits:
    """All samples that match, in the order of the data set."""

    samples: tuple[Hit, ...]
    num_without_sha256: int
    """Number of samples without the sha256 of the original file, whose stored image was hashed instead. 0 if no hash
    was asked for."""

    @property
    def row_groups(self) -> npt.NDArray[np.int64]:
        return np.array([hit.group for hit in self.samples], dtype=np.int64)

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        return np.array([hit.row for hit in self.samples], dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What was found in some row groups."""

    hits: list[Hit]
    num_samples: int
    num_without_sha256: int
    examples: list[str]


def find_hits(info: DatasetInfo, entries: Entries) -> Hits:
    """Looks all samples up. Raises ValueError, with examples of both sides, if none matches."""
    hits: list[Hit] = []
    examples: list[str] = []
    num_without = 0
    groups = np.arange(len(info.rows))
    with ProgressLine("looked up", info.num_samples, "samples") as progress:
        for found in in_threads(lambda run: _look_up(info, entries, run), runs_of(info, groups)):
            hits += found.hits
            num_without += found.num_without_sha256
            examples += found.examples[: _NUM_EXAMPLES - len(examples)]
            progress.add(found.num_samples, f"{len(hits):,} match")
    if not hits:
        given = ", ".join(repr(entry.text) for entry in entries.all[:_NUM_EXAMPLES])
        raise ValueError(
            f"none of the {len(entries.all):,} entries matches a sample of {info.uri}: given are e.g. {given}; the "
            f"data set has e.g. {', '.join(examples)}"
        )
    return Hits(samples=tuple(hits), num_without_sha256=num_without)


def _look_up(info: DatasetInfo, entries: Entries, run: Run) -> _Found:
    rows = read_columns(info, run, ["sample_id", "url", "sha256", "source"]).to_pylist()
    if len(rows) != sum(int(info.rows[group]) for group in run.groups):
        raise ValueError(
            f"{info.uri}/{info.files[run.file]}: does not have the rows that the manifest counts; "
            "`groupvit inspect --verify` shows what is corrupted"
        )
    hashes = [row["sha256"] for row in rows]
    without = [index for index, sha256 in enumerate(hashes) if sha256 is None] if entries.has_hashes else []
    if without:
        images = read_columns(info, run, ["image"]).column("image")
        for index in without:
            hashes[index] = hashlib.sha256(images[index].as_buffer()).hexdigest()
    hits = []
    for (group, place), row, sha256 in zip(_places(info, run), rows, hashes, strict=True):
        if numbers := entries.matching(row["url"], sha256):
            source = row["source"] or "all sources"
            hit = Hit(
                group=group,
                row=place,
                sample_id=row["sample_id"],
                url=row["url"],
                source=source,
                entries=tuple(numbers),
            )
            hits.append(hit)
    examples = [_example(row["url"], sha256) for row, sha256 in zip(rows[:_NUM_EXAMPLES], hashes, strict=False)]
    return _Found(hits=hits, num_samples=len(rows), num_without_sha256=len(without), examples=examples)


def _places(info: DatasetInfo, run: Run) -> Sequence[tuple[int, int]]:
    """Returns the row group and the row in it of each sample that `read_columns` returns."""
    return [(group, row) for group in run.groups for row in range(int(info.rows[group]))]


def _example(url: str | None, sha256: str | None) -> str:
    return f"{'no url' if url is None else repr(url)} with {'no sha256' if sha256 is None else f'sha256 {sha256}'}"
