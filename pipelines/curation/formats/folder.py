"""A folder of images with a file that describes them, a row for each: metadata.csv, .tsv or .jsonl.

The path of an image, relative to that file, is in `file_name`, as `datasets` calls it, or a column of a similar name.
"""

import csv
import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

from pipelines import documents, storage
from pipelines.curation.formats.columns import USUAL_NAMES, row_of, shown
from pipelines.curation.formats.shard import MAX_IMAGE_BYTES, ROWS_PER_BATCH, Columns, Piece, Row, Shard
from pipelines.curation.formats.tar_stream import ByteStream

_FILE_NAMES = ("file_name", "filename", "file", "image_path", "filepath", "path", "image", "img")
_CHUNK = 2**20  # bytes
_LONGEST_LINE = 2**20  # bytes
_NUM_THREADS = 16  # that wait for storage
_FIX = "correct the line, or leave it out"


def read_shard(source: int, folder: str, name: str, version: str, wanted: Columns) -> Shard:
    """Reads the whole file once, without the images.

    Raises ValueError, in one line, for a row that cannot be read, or a path out of the folder.
    """
    uri = storage.join(folder, name)
    sizes = storage.list_sizes(folder)
    listing = hashlib.sha256(json.dumps(sorted(sizes.items())).encode()).hexdigest()[:32]
    rows: list[int] = []
    offsets: list[int] = []
    num_missing, first_missing, captions_in = 0, "", dict[str, None]()
    records = _records(uri, 0)
    start = next(records).end  # of the header, or 0
    while batch := list(islice(records, ROWS_PER_BATCH)):
        for record in batch:
            path = _path(record, wanted, uri)
            if path not in sizes:
                num_missing, first_missing = num_missing + 1, first_missing or path
        captions_in |= dict.fromkeys(_caption_columns(batch[0], wanted))
        rows.append(len(batch))
        offsets.append(start)
        start = batch[-1].end
    if rows and not captions_in:
        [first] = islice(_records(uri, offsets[0]), 1, 2)
        raise ValueError(f"raw={uri}: has no column caption, only {shown([*first.values])}; give --columns caption=…")
    missing = f"; {num_missing:,} images are missing, first {first_missing}" if num_missing else ""
    return Shard(
        source=source,
        uri=uri,
        version=f"{version} {listing}",
        rows=tuple(rows),
        format="folder",
        columns=wanted,
        offsets=tuple(offsets),
        description=f"images described by {name}, captions in {', '.join(captions_in)}{missing}",
    )


def read_rows(piece: Piece) -> Iterator[list[Row]]:
    """Yields the rows of a piece in batches of up to 64. Raises ValueError if the file has changed, OSError if storage
    fails.
    """
    folder = piece.uri.rpartition("/")[0]
    records = islice(_records(piece.uri, piece.offset), 1, 1 + piece.num_rows)
    with ThreadPoolExecutor(_NUM_THREADS) as threads:
        while batch := list(islice(records, ROWS_PER_BATCH)):
            rows = [row_of(record.values, piece.columns) for record in batch]
            paths = [_path(record, piece.columns, piece.uri) for record in batch]
            images = threads.map(lambda path: _read_image(folder, path), paths)
            yield [row | image for row, image in zip(rows, images, strict=True)]


def _read_image(folder: str, path: str) -> Row:
    """Returns the image and what is wrong with it. A link out of the folder is not followed."""
    try:
        documents.refuse_links_out(folder, [path])
    except ValueError:
        return {"jpg": None, "notes": ("link",)}
    try:
        return {"jpg": storage.read_bytes(storage.join(folder, path), MAX_IMAGE_BYTES)}
    except (FileNotFoundError, IsADirectoryError):
        return {"jpg": None}
    except ValueError:  # too large, or a device
        return {"jpg": None, "status": "failed", "error_message": "too_large"}


@dataclass(frozen=True, kw_only=True)
class _Record:
    """A row of the file."""

    line: int
    """Number of its last line."""
    end: int
    """Position after it, in bytes."""
    values: dict[str, Any]


def _records(uri: str, start: int) -> Iterator[_Record]:
    """Yields an empty record for the header, and then the rows from byte `start` (0: the first) on."""
    lines = _Lines(uri, 0)
    kind = uri.rpartition(".")[2]
    if kind == "jsonl":
        yield _Record(line=0, end=0, values={})
        lines = _Lines(uri, start)
        for line in lines:
            if line.strip():
                values = documents.parse(line, dict[str, Any], f"raw={uri}: {lines.place}", _FIX)
                yield _Record(line=lines.number, end=lines.end, values=values)
        return
    header = next(_fields(lines, kind, uri), None)
    if header is None:
        raise ValueError(f"raw={uri}: is empty; its first line has to name the columns")
    yield _Record(line=lines.number, end=lines.end, values={})
    if start > lines.end:
        lines = _Lines(uri, start)
    for fields in _fields(lines, kind, uri):
        if len(fields) != len(header):
            raise ValueError(
                f"raw={uri}: {lines.place} has {len(fields)} fields, the header {len(header)} ({shown(header)}); {_FIX}"
            )
        yield _Record(line=lines.number, end=lines.end, values=dict(zip(header, fields, strict=True)))


def _fields(lines: "_Lines", kind: str, uri: str) -> Iterator[list[str]]:
    """Yields the fields of each row. In a tsv, quotes mean nothing, because captions contain them."""
    if kind == "tsv":
        yield from (line.rstrip("\r\n").split("\t") for line in lines if line.strip())
        return
    reader = csv.reader(lines, strict=True)
    try:
        yield from filter(None, reader)
    except csv.Error as error:
        raise ValueError(
            f"raw={uri}: {lines.place} is not a row of a csv ({error}): is a quote unclosed? {_FIX}"
        ) from None


class _Lines:
    """The lines of a text in UTF-8 from a position on, with the position after the last one."""

    def __init__(self, uri: str, start: int) -> None:
        self._uri, self._stream = uri, ByteStream(uri, start)
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
            raise ValueError(f"raw={self._uri}: {self.place} has more than {_LONGEST_LINE:,} bytes; {_FIX}")
        try:
            return line.decode("utf-8-sig" if self._from_the_start and self.number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"raw={self._uri}: {self.place} is not UTF-8; convert the file, e.g. with iconv") from None


def _path(record: _Record, wanted: Columns, uri: str) -> str:
    """Returns the path of the image of a row, relative to its file."""
    by_lower = {name.lower(): name for name in record.values}
    names = [name for field, name in wanted if field == "image"]
    name = names[0] if names else next((by_lower[name] for name in _FILE_NAMES if name in by_lower), "")
    if name not in record.values:
        raise ValueError(
            f"raw={uri}: has no column {name or _FILE_NAMES[0]}, only {shown([*record.values])}; name the one with the "
            "paths of images: --columns image=…"
        )
    value = record.values[name]
    if not isinstance(value, str) or not value:
        raise ValueError(
            f"raw={uri}: line {record.line}: {name} is {str(value)[:80]!r}, not the path of an image; {_FIX}"
        )
    return documents.in_folder(
        value.removeprefix("./"), f"raw={uri}: line {record.line}", "give paths below the folder of this file"
    )


def _caption_columns(record: _Record, wanted: Columns) -> list[str]:
    named = [name for field, name in wanted if field == "caption"]
    by_lower = {name.lower(): name for name in record.values}
    usual = [by_lower[name] for name in USUAL_NAMES["caption"] if name in by_lower]
    return [name for name in named if name in record.values] if named else usual[:1]
