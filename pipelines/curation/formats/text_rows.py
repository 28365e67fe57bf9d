"""Reads the rows of a csv, tsv or jsonl, one at a time, from any row on."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipelines import documents
from pipelines.curation.formats.columns import shown
from pipelines.curation.formats.tar_stream import ByteStream

_CHUNK = 2**20  # bytes
_LONGEST_LINE = 2**20  # bytes
FIX = "correct the line, or leave it out"


@dataclass(frozen=True, kw_only=True)
class Record:
    """A row of a file."""

    line: int
    """Number of its last line."""
    end: int
    """Position after it, in bytes."""
    values: dict[str, Any]


def records(uri: str, start: int, place: str) -> Iterator[Record]:
    """Yields an empty record for the header, and then the rows from byte `start` (0: the first) on.

    Args:
        uri: A file that ends in .csv, .tsv or .jsonl.
        start: `end` of an earlier record.
        place: What errors call the file, e.g. "raw=data/metadata.csv".

    Raises:
        ValueError: In one line, for a row that cannot be read.
    """
    lines = _Lines(uri, 0, place)
    kind = uri.rpartition(".")[2].lower()
    if kind == "jsonl":
        yield Record(line=0, end=0, values={})
        lines = _Lines(uri, start, place)
        for line in lines:
            if line.strip():
                values = documents.parse(line, dict[str, Any], f"{place}: {lines.place}", FIX)
                yield Record(line=lines.number, end=lines.end, values=values)
        return
    header = next(_fields(lines, kind, place), None)
    if header is None:
        raise ValueError(f"{place}: is empty; its first line has to name the columns")
    yield Record(line=lines.number, end=lines.end, values={})
    if start > lines.end:
        lines = _Lines(uri, start, place)
    for fields in _fields(lines, kind, place):
        if len(fields) != len(header):
            raise ValueError(
                f"{place}: {lines.place} has {len(fields)} fields, the header {len(header)} ({shown(header)}); {FIX}"
            )
        yield Record(line=lines.number, end=lines.end, values=dict(zip(header, fields, strict=True)))


def _fields(lines: "_Lines", kind: str, place: str) -> Iterator[list[str]]:
    """Yields the fields of each row. In a tsv, quotes mean nothing, because captions contain them."""
    if kind == "tsv":
        yield from (line.rstrip("\r\n").split("\t") for line in lines if line.strip())
        return
    reader = csv.reader(lines, strict=True)
    try:
        yield from filter(None, reader)
    except csv.Error as error:
        raise ValueError(
            f"{place}: {lines.place} is not a row of a csv ({error}): is a quote unclosed? {FIX}"
        ) from None


class _Lines:
    """The lines of a text in UTF-8 from a position on, with the position after the last one."""

    def __init__(self, uri: str, start: int, file: str) -> None:
        self._file, self._stream = file, ByteStream(uri, start)
        self._waiting = b""
        self._from_the_start = start == 0
        self.number, self.end = 0, start

    @property
    def place(self) -> str:
        """Where the last line is, in words."""
        return f"line {self.number}" if self._from_the_start else f"the line before byte {self.end:,}"

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        newline = self._waiting.find(b"\n")
        while newline < 0 and len(self._waiting) <= _LONGEST_LINE and (more := self._stream.read(_CHUNK)):
            newline = more.find(b"\n")
            newline += len(self._waiting) if newline >= 0 else 0
            self._waiting += more
        size = newline + 1 if newline >= 0 else len(self._waiting)
        line, self._waiting = self._waiting[:size], self._waiting[size:]
        if not line:
            raise StopIteration
        self.number, self.end = self.number + 1, self.end + size
        if size > _LONGEST_LINE:
            raise ValueError(f"{self._file}: {self.place} has more than {_LONGEST_LINE:,} bytes; {FIX}")
        try:
            return line.decode("utf-8-sig" if self._from_the_start and self.number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"{self._file}: {self.place} is not UTF-8; convert the file, e.g. with iconv") from None
