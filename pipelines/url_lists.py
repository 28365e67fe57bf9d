"""Lists of image URLs with captions, as data sets are published, read as one table of LIST_SCHEMA.

A list is a file or a folder of files: csv (quoted), tsv (as it is: captions contain quotes), json (a list of objects,
or a data set's own form), jsonl, parquet; all but parquet also compressed (.gz, .bz2, .zst); local or s3://.
"""

import hashlib
import json
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv, fs

from pipelines import storage
from pipelines.url_list_presets import Columns

LIST_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64()),  # position in the whole list
        pa.field("url", pa.string()),  # without credentials; empty where the list has none
        pa.field("caption", pa.string()),
        # What some lists know besides, null where they do not
        pa.field("license", pa.string()),
        pa.field("similarity", pa.float64()),  # of image and caption, by CLIP
        pa.field("nsfw", pa.string()),
        pa.field("punsafe", pa.float64()),
        pa.field("pwatermark", pa.float64()),
    ]
)

_KINDS = ("csv", "tsv", "jsonl", "json", "parquet")
_COMPRESSIONS = ("gz", "bz2", "zst")
_ROWS_PER_BATCH = 1 << 16


def list_files(uri: str) -> list[str]:
    """URIs of the files of a list, sorted. ValueError if there are none that can be read."""
    filesystem, path = storage.resolve(uri)
    try:
        kind = storage.retry(lambda: filesystem.get_file_info(path).type, uri)
    except OSError as error:
        raise ValueError(f"{uri}: cannot be read ({error}); check the bucket and the credentials") from error
    if kind == fs.FileType.NotFound:
        raise ValueError(f"{uri}: no such file or folder; give a list of URLs")
    if kind == fs.FileType.File:
        _kind(uri)
        return [uri]
    names = [name for name in storage.list_files(uri) if storage.is_data(name) and not name.startswith("_")]
    files = [storage.join(uri, name) for name in names if _kind_or_none(name)]
    if not files:
        raise ValueError(f"{uri}: no list in this folder; give files that end in {', '.join(_KINDS)}, or those + .gz")
    return files


def digest(files: Iterable[str]) -> str:
    """Of the contents of a list, 32 hexadecimal digits; the names of its files do not matter, their order does."""
    whole = hashlib.sha256()
    for uri in files:
        filesystem, path = storage.resolve(uri)
        content = hashlib.sha256()
        with filesystem.open_input_stream(path, compression=None) as file:
            while piece := file.read(1 << 20):
                content.update(piece)
        whole.update(content.digest())
    return whole.hexdigest()[:32]


def read_list(files: Iterable[str], columns: Columns) -> Iterator[pa.Table]:
    """Tables of LIST_SCHEMA, one after the other all of the list. Memory: one table, or one json file.

    ValueError, one line, for a file that lacks a column or that is damaged.
    """
    row = 0
    for uri in files:
        try:
            for table in _READERS[_kind(uri)](uri, columns):
                for batch in table.to_batches(max_chunksize=_ROWS_PER_BATCH):
                    yield _finished(pa.Table.from_batches([batch]), columns, row)
                    row += batch.num_rows
        except (pa.ArrowException, OSError, EOFError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{uri}: damaged or half-written ({error}); write or copy it again") from error


def shards(tables: Iterable[pa.Table], rows_per_shard: int) -> Iterator[pa.Table]:
    """The same rows in tables of `rows_per_shard`, the last one smaller."""
    waiting: list[pa.Table] = []
    num_waiting = 0
    for table in tables:
        waiting.append(table)
        num_waiting += table.num_rows
        while num_waiting >= rows_per_shard:
            joined = pa.concat_tables(waiting)
            yield joined.slice(0, rows_per_shard).combine_chunks()
            waiting = [joined.slice(rows_per_shard)]
            num_waiting -= rows_per_shard
    if num_waiting:
        yield pa.concat_tables(waiting).combine_chunks()


def _kind_or_none(uri: str) -> str | None:
    name = uri.rpartition("/")[2].lower()
    stem, _, compression = name.rpartition(".")
    kind = stem.rpartition(".")[2] if compression in _COMPRESSIONS else compression
    return kind if kind in _KINDS else None


def _kind(uri: str) -> str:
    kind = _kind_or_none(uri)
    if kind is None:
        raise ValueError(f"{uri}: unknown kind of list; give a file that ends in {', '.join(_KINDS)}, or those + .gz")
    return kind


def _selection(uri: str, names: Sequence[str], columns: Columns) -> dict[str, str]:
    """Which column of the file becomes which of ours. ValueError if the URL or the caption is not there."""
    by_lower = {name.lower(): name for name in reversed(names)}
    selected: dict[str, str] = {}
    for ours, candidates in (
        ("url", columns.url),
        ("caption", columns.caption),
        ("caption_second", (columns.caption_second or "",)),
        ("license", columns.license),
        *((name, (name,)) for name in LIST_SCHEMA.names[4:]),
    ):
        found = next((by_lower[name.lower()] for name in candidates if name.lower() in by_lower), None)
        if found is not None:
            selected[ours] = found
        elif ours in ("url", "caption"):
            shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
            raise ValueError(
                f"{uri}: no column {' or '.join(candidates)}; it has {shown or 'none'}: give --{ours}-column, or the "
                "--preset of its data set"
            )
    return selected


def _read_delimited(uri: str, columns: Columns) -> Iterator[pa.Table]:
    filesystem, path = storage.resolve(uri)
    tabs = _kind(uri) == "tsv"
    parsing = csv.ParseOptions(
        delimiter="\t" if tabs else ",", quote_char=False if tabs else '"', newlines_in_values=not tabs
    )
    reading = csv.ReadOptions(column_names=columns.header)
    if not filesystem.open_input_stream(path).read(1):
        return  # an empty file is an empty list, also without its header
    with filesystem.open_input_stream(path) as file, csv.open_csv(file, reading, parsing) as reader:
        selected = _selection(uri, reader.schema.names, columns)
    # Types are ours, not guessed from the first rows, which later ones may not fit.
    converting = csv.ConvertOptions(
        include_columns=list(selected.values()),
        column_types={theirs: _type(ours) for ours, theirs in selected.items()},
    )
    with filesystem.open_input_stream(path) as file, csv.open_csv(file, reading, parsing, converting) as reader:
        for batch in reader:
            yield pa.Table.from_batches([batch]).rename_columns(list(selected))


def _read_parquet(uri: str, columns: Columns) -> Iterator[pa.Table]:
    filesystem, path = storage.resolve(uri)
    with filesystem.open_input_file(path) as opened, pq.ParquetFile(opened) as file:
        selected = _selection(uri, file.schema_arrow.names, columns)
        for batch in file.iter_batches(_ROWS_PER_BATCH, columns=list(selected.values())):
            table = pa.Table.from_batches([batch]).select(list(selected.values()))
            yield table.rename_columns(list(selected))


def _read_json(uri: str, columns: Columns) -> Iterator[pa.Table]:
    filesystem, path = storage.resolve(uri)
    with filesystem.open_input_stream(path) as file:
        content = json.loads(file.read())
    if isinstance(content, dict):  # COCO has images and annotations, RedCaps annotations with URLs in them
        records = _joined(content) if "images" in content else content.get("annotations")
    else:
        records = content
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise ValueError(
            f"{uri}: no list of objects; give one object per image, or COCO's or RedCaps' annotation files"
        )
    yield from _tables(uri, records, columns)


def _joined(content: Mapping[str, Any]) -> list[Any]:
    licenses = {license.get("id"): license.get("url") for license in content.get("licenses", [])}
    images = {
        image["id"]: {**image, "license": licenses.get(image.get("license"))} for image in content.get("images", [])
    }
    return [{**images.get(item.get("image_id"), {}), **item} for item in content.get("annotations", [])]


def _read_json_lines(uri: str, columns: Columns) -> Iterator[pa.Table]:
    filesystem, path = storage.resolve(uri)
    records: list[Any] = []
    pending = b""
    with filesystem.open_input_stream(path) as file:
        while piece := file.read(1 << 20):
            *lines, pending = (pending + piece).split(b"\n")
            records += [json.loads(line) for line in lines if line.strip()]
            if len(records) >= _ROWS_PER_BATCH:
                yield from _tables(uri, records, columns)
                records = []
    records += [json.loads(pending)] if pending.strip() else []
    if not all(isinstance(record, dict) for record in records):
        raise ValueError(f"{uri}: a line is no object; give one object per line")
    yield from _tables(uri, records, columns)


def _tables(uri: str, records: Sequence[Mapping[str, Any]], columns: Columns) -> Iterator[pa.Table]:
    if not records:
        return
    selected = _selection(uri, list(dict.fromkeys(name for record in records for name in record)), columns)
    yield pa.table(
        {
            ours: pa.array([_value(record.get(theirs), _type(ours)) for record in records], _type(ours))
            for ours, theirs in selected.items()
        }
    )


def _type(ours: str) -> pa.DataType:
    return pa.string() if ours == "caption_second" else LIST_SCHEMA.field(ours).type


def _value(value: Any, kind: pa.DataType) -> str | float | None:
    if value is None or isinstance(value, (list, dict)):
        return None
    if kind == pa.string():
        return str(value)
    try:
        return float(value)
    except ValueError:
        return None


def _finished(table: pa.Table, columns: Columns, row: int) -> pa.Table:
    values = {name: table.column(name).cast(_type(name)) for name in table.column_names}
    url = pc.call_function("utf8_trim_whitespace", [pc.fill_null(values["url"], "")])
    # Records of the download keep URLs for ever: what is written before an @ is a password.
    without = pc.ReplaceSubstringOptions(r"^([A-Za-z][A-Za-z0-9+.-]*://)[^/?#]*@", r"\1")
    values["url"] = pc.call_function("replace_substring_regex", [url], without)
    captions = [values["caption"], *([values["caption_second"]] if "caption_second" in values else [])]
    if columns.percent_encoded or len(captions) > 1:
        texts = zip(*(caption.to_pylist() for caption in captions), strict=True)
        decode = urllib.parse.unquote_plus if columns.percent_encoded else str
        values["caption"] = pa.array(
            [" ".join(decode(text) for text in parts if text) or None for parts in texts], pa.string()
        )
    values["row"] = pa.array(range(row, row + table.num_rows), pa.int64())
    return pa.table(
        {field.name: values.get(field.name, pa.nulls(table.num_rows, field.type)) for field in LIST_SCHEMA},
        schema=LIST_SCHEMA,
    )


_READERS = {
    "csv": _read_delimited,
    "tsv": _read_delimited,
    "json": _read_json,
    "jsonl": _read_json_lines,
    "parquet": _read_parquet,
}
