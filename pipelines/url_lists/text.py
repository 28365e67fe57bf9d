"""Reads lines of text, and URL lists in csv (quoted) and tsv (not quoted, because captions contain quotes)."""

import codecs
import csv
from collections import deque
from collections.abc import Iterator, Sequence

import pyarrow as pa

from pipelines.url_lists.columns import select_columns
from pipelines.url_lists.content import START, check_text
from pipelines.url_lists.presets import Columns
from pipelines.url_lists.rejected import Reject
from pipelines.url_lists.rows import table_of_texts

_CHUNK = 1 << 22  # bytes
_LONGEST_LINE = 1 << 20  # bytes: a longer line is not a row
_MOST_LINES_OF_A_RECORD = 1000  # after more lines, the quote counts as unclosed
_RECORDS_PER_TABLE = 1 << 14


def read_lines(uri: str, file: pa.NativeFile, reject: Reject) -> Iterator[tuple[int, list[str | None]]]:
    """Yields lines of a text in UTF-8, without line ends: the number of the first line, from 1, and some lines. A
    rejected line is None. Memory: about 4 MiB, however long a line is.

    Raises ValueError if the file is not text, or has another encoding.
    """
    number, pending, too_long = 1, b"", False
    start = True
    while piece := file.read(_CHUNK):
        if start:
            check_text(uri, piece[:START])
            piece, start = piece.removeprefix(codecs.BOM_UTF8), False
        whole, newline, rest = piece.rpartition(b"\n")
        if newline:
            lines = _decoded(pending + whole, number, reject, too_long)
            yield number, lines
            number += len(lines)
            pending, too_long = rest, False
        else:
            pending += rest
        if len(pending) > _LONGEST_LINE:
            pending, too_long = pending[:START], True
    if pending:
        yield number, _decoded(pending, number, reject, too_long)


def _decoded(content: bytes, number: int, reject: Reject, first_too_long: bool) -> list[str | None]:
    lines: list[str | None]
    try:
        lines = [*content.decode().split("\n")]
        if not first_too_long and len(content) < _LONGEST_LINE:
            return lines
    except UnicodeDecodeError:
        lines = [_line(line, number + index, reject) for index, line in enumerate(content.split(b"\n"))]
    for index, line in enumerate(lines):
        if line is not None and ((first_too_long and index == 0) or len(line.encode()) > _LONGEST_LINE):
            reject(number + index, "line_too_long", f"{line[:40]}... has more than {_LONGEST_LINE:,} bytes")
            lines[index] = None
    return lines


def _line(line: bytes, number: int, reject: Reject) -> str | None:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        shown = line[max(0, error.start - 20) : error.start + 20].decode(errors="backslashreplace")
        reject(number, "invalid_utf8", f"byte 0x{line[error.start]:02x} in {shown!r}")
        return None


def read_tsv(uri: str, file: pa.NativeFile, columns: Columns, reject: Reject) -> Iterator[pa.Table]:
    """Yields tables as described in `pipelines.url_lists.rows`, each from some thousands of lines."""
    names, selected = _header_of_preset(uri, columns)
    for first, lines in read_lines(uri, file, reject):
        rows: list[list[str]] = []
        numbers: list[int] = []
        for number, line in enumerate(lines, start=first):
            if not line or line == "\r":
                _check_header_was_read(uri, number, line, names)
                continue
            fields = line.removesuffix("\r").split("\t")
            if not names:
                names = fields
                selected = select_columns(uri, names, columns)
            elif len(fields) != len(names):
                reject(number, "wrong_number_of_fields", _ragged(fields, names, line))
            else:
                rows.append(fields)
                numbers.append(number)
        if names:
            yield table_of_texts(rows, numbers, selected)


def read_csv(uri: str, file: pa.NativeFile, columns: Columns, reject: Reject) -> Iterator[pa.Table]:
    """Yields tables as described in `pipelines.url_lists.rows`, each from some thousands of records."""
    names, selected = _header_of_preset(uri, columns)
    rows: list[list[str]] = []
    numbers: list[int] = []
    num_records = 0
    for number, fields in _records(_Lines(uri, file, reject), reject):
        num_records += 1
        if fields is None:
            _check_header_was_read(uri, number, None, names)
        elif not names:
            names = fields
            selected = select_columns(uri, names, columns)
        elif len(fields) != len(names):
            reject(number, "wrong_number_of_fields", _ragged(fields, names, ",".join(fields)))
        else:
            rows.append(fields)
            numbers.append(number)
        if num_records % _RECORDS_PER_TABLE == 0:
            yield table_of_texts(rows, numbers, selected)
            rows, numbers = [], []
    if num_records:
        yield table_of_texts(rows, numbers, selected)


def _header_of_preset(uri: str, columns: Columns) -> tuple[Sequence[str], dict[str, int]]:
    return (columns.header, select_columns(uri, columns.header, columns)) if columns.header else ((), {})


def _check_header_was_read(uri: str, number: int, line: str | None, names: Sequence[str]) -> None:
    if line is None and not names:
        raise ValueError(f"{uri}: line {number}: the header is not UTF-8 text with names of columns; write it again")


def _ragged(fields: Sequence[str], names: Sequence[str], line: str) -> str:
    return f"{len(fields)} fields, expected {len(names)} ({', '.join(names[:8])}): {line!r}"


class _Lines:
    """Lines for csv.reader. Keeps the lines of the current record, so that they can be read again."""

    def __init__(self, uri: str, file: pa.NativeFile, reject: Reject) -> None:
        self._chunks = read_lines(uri, file, reject)
        self._waiting: deque[tuple[int, str | None]] = deque()
        self.taken: list[tuple[int, str]] = []
        self.bad: int | None = None
        """Number of a rejected line that ended the record."""

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        if not self._waiting:
            first, lines = next(self._chunks)
            self._waiting.extend(enumerate(lines, start=first))
        if len(self.taken) >= _MOST_LINES_OF_A_RECORD:
            raise csv.Error
        number, line = self._waiting.popleft()
        if line is None:
            self.bad = number
            raise csv.Error
        # Within a field, a carriage return is white space. csv.reader raises an error for it outside of quotes.
        line = line.removesuffix("\r").replace("\r", " ")
        self.taken.append((number, line))
        return line + "\n"

    def give_back(self) -> None:
        """Puts back all taken lines but the first, to be read again."""
        self._waiting.extendleft(reversed(self.taken[1:]))


def _records(lines: _Lines, reject: Reject) -> Iterator[tuple[int, list[str] | None]]:
    """Yields the number of the first line of each record, and its fields, or None for a rejected line."""
    reader = csv.reader(lines)
    while True:
        lines.taken, lines.bad = [], None
        fields: list[str] | None = None
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error:
            pass
        if fields is not None and not _is_unclosed(lines.taken, fields):
            if fields:  # an empty line has no fields
                yield lines.taken[0][0], fields
            continue
        if lines.taken:
            number, line = lines.taken[0]
            alone = fields is None and len(lines.taken) == 1 and lines.bad is None
            reject(number, "field_too_long" if alone else "unclosed_quote", repr(line[:300]))
            lines.give_back()
            yield number, None
        if lines.bad is not None:
            yield lines.bad, None


def _is_unclosed(taken: Sequence[tuple[int, str]], fields: Sequence[str]) -> bool:
    """Whether a quote that joins lines is unclosed, or closed within a field. Then it was not meant to join them."""
    if len(taken) < 2 and not (fields and fields[-1].endswith("\n")):
        return False
    try:
        next(csv.reader([line + "\n" for _, line in taken], strict=True))
    except csv.Error:
        return True
    return False
