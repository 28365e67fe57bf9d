"""Groups the rows of a URL list by URL, so that each URL is fetched once, with all its captions.

Memory does not grow with the list. Rows that do not fit are distributed to files on disk by a hash of the URL, grouped
file by file, distributed again by their position in the list, and sorted file by file. The result depends only on the
list.
"""

import itertools
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.dataset.raw_shards import nsfw_label
from pipelines.url_lists.rows import LIST_SCHEMA, lists_of

_MOST_BYTES = 1 << 27
"""Number of bytes of rows that are held in memory before they are written to disk."""
_NUM_FILES = 256
"""Number of files that rows are distributed to. With a billion rows, each file has some 4 million, about 1 GB."""
_WORST = ("punsafe", "pwatermark")
"""Scores of an image for which the largest value is kept."""


def by_url(tables: Iterable[pa.Table], folder: Path) -> Iterator[pa.Table]:
    """Groups rows by URL.

    A row has the captions of all rows of its URL, in order and without repetitions. It is labelled NSFW if one of them
    is. Of `punsafe` and `pwatermark` it has the largest value. Its other values are those of the first row.

    Args:
        tables: Tables of LIST_SCHEMA.
        folder: Folder for temporary files, which take about as much space as the list.

    Returns:
        Tables of LIST_SCHEMA with one row per URL, ordered by first appearance of the URL. `row` counts them.
    """
    num_rows = 0

    def counted() -> Iterator[pa.Table]:
        nonlocal num_rows
        for table in tables:
            num_rows += table.num_rows
            yield table

    pieces = _joined(counted())
    piece = next(pieces, None)
    following = next(pieces, None)
    if following is None:
        groups = iter([] if piece is None else [grouped(piece)])
    else:
        by_hash, in_order = _Files(folder / "by-hash"), _Files(folder / "in-order")
        for table in itertools.chain([piece, following], pieces):
            by_hash.deal(table, _hashes(table))
        for table in _joined(grouped(table) for table in by_hash.read()):
            in_order.deal(table, _array(table, "row").to_numpy() * _NUM_FILES // num_rows)
        groups = (table.sort_by("row") for table in in_order.read())
    first = 0
    for table in groups:
        rows = pa.array(np.arange(first, first + table.num_rows))
        yield table.set_column(0, LIST_SCHEMA.field("row"), rows)
        first += table.num_rows


def grouped(table: pa.Table) -> pa.Table:
    """Groups a table of LIST_SCHEMA, sorted by `row`, by URL. The result is sorted by `row`, too."""
    table = table.combine_chunks()
    codes = _array(table, "url").dictionary_encode().indices.to_numpy()  # in the order of first appearance
    first = np.unique(codes, return_index=True)[1]
    if len(first) == table.num_rows:
        return table
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    result = table.take(pa.array(first))
    captions: Any = _array(table, "captions")
    parents = codes[captions.value_parent_indices().to_numpy()].astype(np.int64)
    lists, firsts = lists_of(parents, captions.flatten(), len(first))
    columns: dict[str, pa.Array] = {"captions": lists, "caption": firsts}
    for name in _WORST:
        scores = _array(table, name).to_numpy(zero_copy_only=False)[order]  # null is NaN
        columns[name] = pa.array(np.fmax.reduceat(scores, starts), pa.float64(), from_pandas=True)
    unsafe = np.array([nsfw_label(label) == "NSFW" for label in _array(table, "nsfw").to_pylist()], bool)
    worst = np.minimum.reduceat(np.where(unsafe[order], order, table.num_rows), starts)
    columns["nsfw"] = _array(table, "nsfw").take(pa.array(np.where(worst < table.num_rows, worst, first)))
    for name, column in columns.items():
        result = result.set_column(result.schema.get_field_index(name), LIST_SCHEMA.field(name), column)
    return result


class _Files:
    """Arrow files that rows are distributed to. Each keeps the order in which its rows arrived."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._writers: dict[int, pa.ipc.RecordBatchStreamWriter] = {}

    def deal(self, table: pa.Table, files: npt.NDArray[np.int64]) -> None:
        """Appends each row to the file with the number in `files`."""
        order = np.argsort(files, kind="stable")
        table = table.take(pa.array(order)).combine_chunks()
        ends = np.searchsorted(files[order], np.arange(_NUM_FILES), side="right")
        start = 0
        for number, end in enumerate(ends.tolist()):
            if end > start:
                self._writer(number).write_table(table.slice(start, end - start))
            start = end

    def read(self) -> Iterator[pa.Table]:
        """Yields the content of each file, by file number, and then removes the file."""
        for writer in self._writers.values():
            writer.close()
        for number in sorted(self._writers):
            path = self._folder / str(number)
            with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as reader:
                yield reader.read_all()
            path.unlink()

    def _writer(self, number: int) -> pa.ipc.RecordBatchStreamWriter:
        if number not in self._writers:
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            self._writers[number] = pa.ipc.new_stream(str(self._folder / str(number)), LIST_SCHEMA, options=options)
        return self._writers[number]


def _joined(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Joins tables into tables of at least _MOST_BYTES (the last one is smaller): a few large writes are faster."""
    waiting: list[pa.Table] = []
    num_bytes = 0
    for table in tables:
        waiting.append(table)
        num_bytes += table.nbytes
        if num_bytes > _MOST_BYTES:
            yield pa.concat_tables(waiting)
            waiting, num_bytes = [], 0
    if waiting:
        yield pa.concat_tables(waiting)


def _hashes(table: pa.Table) -> npt.NDArray[np.int64]:
    urls = _array(table, "url").to_pylist()
    return np.fromiter((zlib.crc32(url.encode()) % _NUM_FILES for url in urls), np.int64, len(urls))


def _array(table: pa.Table, name: str) -> pa.Array:
    return pa.concat_arrays([*table.column(name).chunks, pa.array([], LIST_SCHEMA.field(name).type)])
