"""The URL list of a download: reads it once, sets invalid rows aside, groups rows by URL, and keeps these in OUT/_list
until all of them have been fetched.
"""

import contextlib
import dataclasses
import itertools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.console.progress import ProgressLine
from pipelines.dataset.raw_shards import LIST_FOLDER
from pipelines.download.config import DownloadConfig
from pipelines.url_lists.groups import by_url
from pipelines.url_lists.reading import read_list
from pipelines.url_lists.rejected import REJECTED_FILE, RejectedRows
from pipelines.url_lists.rows import LIST_SCHEMA, MOST_CAPTIONS

_NUM_SAMPLED = 64
"""Number of URLs for the preflight, spread over the list."""


@dataclasses.dataclass(kw_only=True)
class ListCounts:
    """Counts of a list. They are complete once the whole list has been read."""

    rows: int = 0
    """Number of rows in the list, including invalid ones."""
    rejected: dict[str, int] = dataclasses.field(default_factory=dict)
    """Number of invalid rows by reason."""
    captions: int = 0
    """Number of captions in the valid rows."""
    urls: int = 0
    """Number of distinct URLs."""
    captions_kept: int = 0
    """Number of captions without repetitions for the same URL and without those beyond MOST_CAPTIONS."""
    sample: list[str] = dataclasses.field(default_factory=list)
    """URLs sampled from the whole list."""


class UrlList:
    """The list that a download fetches. As a context manager, it owns a folder for temporary files."""

    def __init__(self, config: DownloadConfig, files: Sequence[str]) -> None:
        """Reads the whole list, to find errors before the download starts. Raises ValueError if it is invalid."""
        self.counts = ListCounts()
        self._resources = contextlib.ExitStack()
        with contextlib.ExitStack() as resources:
            folder = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="groupvit-list-")))
            self._rejected_file = folder / REJECTED_FILE
            self._rejected = resources.enter_context(RejectedRows(self._rejected_file, config.max_bad_rows))
            with _naming_full_disk(folder):
                self._tables = by_url(self._counted(read_list(files, config.columns, self._rejected)), folder)
                self._first = next(self._tables, None)  # this reads the whole list
            self._resources = resources.pop_all()
        self.counts.rows = self._rejected.num_good + self._rejected.counts.total()
        self.counts.rejected = dict(sorted(self._rejected.counts.items()))

    def __enter__(self) -> "UrlList":
        return self

    def __exit__(self, *error: object) -> None:
        self._resources.close()

    def write(self, out: str) -> None:
        """Writes one row per URL to OUT/_list, and the invalid rows to OUT/rejected.jsonl.

        Raises ValueError if OUT cannot be written.
        """
        try:
            self._write(out)
        except OSError as error:
            if isinstance(error, storage.StorageError):
                raise
            raise ValueError(f"out={out}: cannot be written ({error}); check the folder and the disk") from error

    def _write(self, out: str) -> None:
        storage.remove_folder(storage.join(out, LIST_FOLDER))
        tables = itertools.chain([] if self._first is None else [self._first], self._tables)
        for number, table in enumerate(tables):
            buffer = pa.BufferOutputStream()
            pq.write_table(table, buffer, compression="zstd")
            uri = storage.join(out, LIST_FOLDER, f"{number:05d}.parquet")
            storage.write_bytes(uri, memoryview(buffer.getvalue()))
            self.counts.urls += table.num_rows
            self.counts.captions_kept += _num_captions(table)
        if self.counts.rejected:
            self._rejected.close()
            storage.copy(str(self._rejected_file), storage.join(out, REJECTED_FILE))

    def _counted(self, tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
        num_rows, every = 0, 1
        sample: list[tuple[int, str]] = []
        with ProgressLine("read", None, "rows of the list") as progress:
            for table in tables:
                urls = table.column("url")
                sample += [(num_rows + i, urls[i].as_py()) for i in range(-num_rows % every, len(urls), every)]
                num_rows += len(urls)
                while len(sample) > _NUM_SAMPLED:
                    every *= 2
                    sample = [(row, url) for row, url in sample if row % every == 0]
                self.counts.captions += _num_captions(table)
                progress.add(table.num_rows)
                yield table
        self.counts.sample = list(dict.fromkeys(url for _, url in sample))  # try each URL only once


def is_written(out: str, num_urls: int) -> bool:
    """Whether OUT/_list holds all `num_urls` rows."""
    folder = storage.join(out, LIST_FOLDER)
    names = [name for name in storage.list_files(folder) if name.endswith(".parquet")]
    return sum(_num_rows(storage.join(folder, name)) for name in names) == num_urls


def read_written(out: str) -> Iterator[pa.Table]:
    """Yields the rows of OUT/_list in order."""
    folder = storage.join(out, LIST_FOLDER)
    for name in storage.list_files(folder):
        with storage.open_parquet(storage.join(folder, name)) as file:
            for batch in file.iter_batches():
                yield pa.Table.from_batches([batch]).cast(LIST_SCHEMA)


def read_by_rows(config: DownloadConfig, files: Sequence[str]) -> Iterator[pa.Table]:
    """Yields rows as earlier versions fetched them, to resume their downloads: rows of the same URL are not grouped.

    Raises ValueError for an invalid row, which the earlier version cannot have seen.
    """
    with (
        tempfile.TemporaryDirectory(prefix="groupvit-list-") as folder,
        RejectedRows(Path(folder) / REJECTED_FILE, max_share=0) as rejected,
    ):
        yield from read_list(files, config.columns, rejected)


def describe(urls: Mapping[str, Any]) -> list[str]:
    """Returns lines that account for every row of a list, from the record of its download."""
    rejected: Mapping[str, int] = urls["rejected"]
    num_rejected = sum(rejected.values())
    num_again = urls["rows"] - num_rejected - urls["urls"]
    num_repeated = urls["captions"] - urls["captions_kept"]
    lines = [f"{urls['rows']:,} rows of the list: {urls['urls']:,} URLs with {urls['captions_kept']:,} captions"]
    if num_again:
        lines.append(f"  {num_again:,} rows have the URL of an earlier one, which has their captions")
    if num_repeated:
        lines.append(
            f"  {num_repeated:,} captions left out, which their URL has already, or beyond {MOST_CAPTIONS:,} a URL"
        )
    if num_rejected:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in rejected.items())
        lines.append(f"  {num_rejected:,} bad rows left out ({reasons}), see {REJECTED_FILE}")
    return lines


def _num_captions(table: pa.Table) -> int:
    return sum(len(chunk.flatten()) for chunk in table.column("captions").chunks)


def _num_rows(uri: str) -> int:
    with storage.open_parquet(uri) as file:
        return file.metadata.num_rows


@contextlib.contextmanager
def _naming_full_disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"{folder.parent}: cannot hold the list while it is sorted ({error}); set TMPDIR to a folder with as "
            "much space as the list takes unpacked"
        ) from error
