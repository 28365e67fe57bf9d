"""Reads URL lists in JSON: one object per line, an array of objects, or a COCO or RedCaps document. The content decides
which of them a file is, not its name.
"""

import codecs
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import pyarrow as pa

from pipelines.url_lists.columns import OPTIONAL, select_columns
from pipelines.url_lists.content import START, check_text
from pipelines.url_lists.presets import Columns
from pipelines.url_lists.rejected import Reject
from pipelines.url_lists.rows import UnfitValueError, label_of, number_of, text_of, type_of
from pipelines.url_lists.text import read_lines

_CHUNK = 1 << 22  # bytes
_LONGEST_ITEM = 1 << 24  # longest item of an array, in characters; longer text is not an item
_ROWS_PER_TABLE = 1 << 14
_BETWEEN_ITEMS = re.compile(r"[\s,]*")
_SHOWN = 80  # characters shown of an invalid value


def read_json(uri: str, open_file: Callable[[], pa.NativeFile], columns: Columns, reject: Reject) -> Iterator[pa.Table]:
    """Yields tables as described in `pipelines.url_lists.rows`. Holds some thousands of rows, or a whole document, in
    memory.

    Raises ValueError if the file is not JSON, or is truncated.
    """
    with open_file() as file:
        start = file.read(_CHUNK)
    if not start:
        return
    check_text(uri, start[:START])
    start = start.removeprefix(codecs.BOM_UTF8).lstrip()
    with open_file() as file:
        if start.startswith(b"["):
            records = _items(uri, file, reject)
        elif _is_lines(start, columns, uri):
            records = _lines(uri, file, reject)
        else:
            records = enumerate(_annotations(uri, file), start=1)
        yield from _tables(uri, records, columns, reject)


def _is_lines(start: bytes, columns: Columns, uri: str) -> bool:
    """Whether a file that begins with `start` has one row per line: then one of the first two lines has a URL."""
    first_lines = start.split(b"\n", 2)[:2]
    if b'"annotations"' in first_lines[0]:
        return False
    wanted = {name.lower() for name in columns.url}
    for line in first_lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and any(name.strip().lower() in wanted for name in record):
            return True
    return ".jsonl" in uri.rpartition("/")[2].lower()


def _lines(uri: str, file: pa.NativeFile, reject: Reject) -> Iterator[tuple[int, Any]]:
    for first, lines in read_lines(uri, file, reject):
        for number, line in enumerate(lines, start=first):
            if line and not line.isspace():
                try:
                    yield number, json.loads(line)
                except (ValueError, RecursionError) as error:
                    reject(number, "invalid_json", f"{_message(error)}: {line[:_SHOWN]!r}")


def _items(uri: str, file: pa.NativeFile, reject: Reject) -> Iterator[tuple[int, Any]]:
    """Yields each item of an array with the line that it begins on."""
    decode = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape").decode
    scan = json.JSONDecoder().raw_decode
    text = decode(file.read(_CHUNK))
    place, line, ended = text.index("[") + 1, 1, False
    line += text.count("\n", 0, place)
    while True:
        after = _BETWEEN_ITEMS.match(text, place)
        assert after is not None
        line += text.count("\n", place, after.end())
        place = after.end()
        if text.startswith("]", place):
            return
        try:
            item, end = scan(text, place)
        except (ValueError, RecursionError) as error:
            if not ended and len(text) - place < _LONGEST_ITEM:
                piece = file.read(_CHUNK)
                text, place, ended = text[place:] + decode(piece, not piece), 0, not piece
                continue
            if len(text) - place >= _LONGEST_ITEM:
                raise ValueError(
                    f"{uri}: line {line}: an item of the array is not JSON, or has more than {_LONGEST_ITEM:,} "
                    f"characters; {_REWRITE}"
                ) from None
            where = line + text.count("\n", place, getattr(error, "pos", place))
            if ended and getattr(error, "pos", place) >= len(text.rstrip()):
                raise ValueError(
                    f"{uri}: line {where}: corrupted or incomplete (the array has no end); {_COPY}"
                ) from None
            raise ValueError(f"{uri}: line {where}: is not JSON ({_message(error)}); {_REWRITE}") from None
        raw = text[place:end]
        try:
            raw.encode()
            yield line, item
        except UnicodeEncodeError as error:
            reject(line, "invalid_utf8", f"byte 0x{ord(raw[error.start]) - 0xDC00:02x} in {raw[:_SHOWN]!r}")
        line += raw.count("\n")
        place = end


_COPY = "write or copy it again"
_REWRITE = "write it again with a JSON library"


def _message(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _annotations(uri: str, file: pa.NativeFile) -> list[Any]:
    """Returns the rows of a COCO document (images and their annotations) or a RedCaps document (annotations)."""
    content = file.read()
    try:
        document = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{uri}: line {line}: byte 0x{content[error.start]:02x} is not UTF-8; convert the list to UTF-8, e.g. "
            "iconv -f LATIN1 -t UTF-8"
        ) from None
    except json.JSONDecodeError as error:
        if error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated string"):
            raise ValueError(
                f"{uri}: line {error.lineno}: corrupted or incomplete ({_message(error)}); {_COPY}"
            ) from None
        raise ValueError(f"{uri}: line {error.lineno}: is not JSON ({_message(error)}); {_REWRITE}") from None
    records = document.get("annotations") if isinstance(document, dict) else None
    if isinstance(records, list) and isinstance(document.get("images"), list):
        records = _joined(document)
    if not isinstance(records, list):
        names = ", ".join(map(str, document)) if isinstance(document, dict) else type(document).__name__
        raise ValueError(
            f"{uri}: no list of objects, but {names[:200] or 'an empty object'}; give one object per image, or "
            "COCO's or RedCaps' annotation files"
        )
    return records


def _joined(document: Mapping[str, Any]) -> list[Any]:
    def by_id(name: str) -> dict[Any, dict[str, Any]]:
        entries = document.get(name)
        return {entry.get("id"): entry for entry in entries or [] if isinstance(entry, dict)}

    licenses, images = by_id("licenses"), by_id("images")
    for image in images.values():
        image["license"] = licenses.get(image.get("license"), {}).get("url")
    return [
        {**images.get(item.get("image_id"), {}), **item} if isinstance(item, dict) else item
        for item in document["annotations"]
    ]


def _tables(uri: str, records: Iterable[tuple[int, Any]], columns: Columns, reject: Reject) -> Iterator[pa.Table]:
    names: dict[str, None] = {}
    remaining = iter(records)
    while batch := list(islice(remaining, _ROWS_PER_TABLE)):
        numbers: list[int] = []
        rows: list[Mapping[str, Any]] = []
        for number, record in batch:
            if isinstance(record, dict):
                names.update(dict.fromkeys(record))
                numbers.append(number)
                rows.append(record)
            else:
                reject(number, "not_an_object", f"{type(record).__name__} {_shown(record)}")
        if rows:
            known = list(names)
            selected = {ours: known[index] for ours, index in select_columns(uri, known, columns).items()}
            yield _table(numbers, rows, selected, reject)


def _table(
    numbers: Sequence[int], rows: Sequence[Mapping[str, Any]], selected: Mapping[str, str], reject: Reject
) -> pa.Table:
    good: list[int] = []
    values: dict[str, list[Any]] = {ours: [] for ours in selected}
    for number, record in zip(numbers, rows, strict=True):
        try:
            row = [_value(ours, name, record.get(name)) for ours, name in selected.items()]
        except UnfitValueError as error:
            reject(number, error.reason, str(error))
            continue
        good.append(number)
        for column, value in zip(values.values(), row, strict=True):
            column.append(value)
    arrays: dict[str, pa.Array] = {"number": pa.array(good, pa.int64())}
    for ours, column in values.items():
        if ours == "caption" and any(isinstance(value, list) for value in column):
            lists = [value if isinstance(value, list) else [value] for value in column]
            arrays[ours] = pa.array(lists, pa.list_(pa.string()))
        else:
            arrays[ours] = pa.array(column, type_of(ours))
    return pa.table(arrays)


def _value(ours: str, name: str, value: Any) -> Any:
    """Converts a value. Raises UnfitValueError if a required column's value is invalid."""
    if ours in OPTIONAL:
        return label_of(value) if type_of(ours) == pa.string() else number_of(value)
    if ours == "url":
        if value is None or isinstance(value, str) or (isinstance(value, float) and math.isnan(value)):
            return text_of(value)
        raise UnfitValueError("url_not_text", f"{name} is {_shown(value)}")
    try:
        return [text_of(part) for part in value] if isinstance(value, list) else text_of(value)
    except TypeError:
        raise UnfitValueError("caption_not_text", f"{name} is {_shown(value)}") from None


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
