"""Files of recaptions: parquet, csv, tsv or jsonl with a column of keys and a column of captions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.curation.formats.columns import USUAL_NAMES, caption_texts, present, shown
from pipelines.curation.formats.text_rows import records
from pipelines.curation.opt_out import url_key
from pipelines.dataset.raw_columns import captions, texts, wrong_with_column

Join = Literal["url", "key", "sha256"]
"""What a recaption and a row of a raw shard have in common: the URL of the image, the key of the sample within its
download, or the sha256 of the original file."""

_NAMES = {
    "url": USUAL_NAMES["url"],
    "key": ("key", "__key__"),
    "sha256": USUAL_NAMES["sha256"],
    "caption": (
        *("re_caption", "recaption", "recaptions", "long_caption", "synthetic_caption", "generated_caption"),
        *USUAL_NAMES["caption"],
    ),
}
"""Names of columns by what they hold, in lower case, the most likely first."""
_ENDINGS = (".parquet", ".csv", ".tsv", ".jsonl")
_ROWS_PER_BATCH = 1024
_BUFFER_SIZE = 2**22  # bytes to read ahead, per column
_FIX = "write the file again"


@dataclass(frozen=True, kw_only=True)
class RecaptionFile:
    """A file of recaptions of one origin."""

    origin: int
    """Number of the origin, from 1."""
    uri: str
    version: str
    """Changes when the file changes."""
    key: str
    """Name of the column of keys."""
    captions: tuple[str, ...]
    """Names of the columns of captions."""


@dataclass(frozen=True, kw_only=True)
class Recaption:
    """A row of a file: the captions of an image."""

    key: str | None
    """As it is written."""
    captions: Sequence[str | None]


def parse_recaption_columns(columns: Sequence[str], join: Join) -> dict[str, tuple[str, ...]]:
    """Parses `--recaption-columns key=id caption=text`. Raises ValueError for an unknown field."""
    parsed: dict[str, tuple[str, ...]] = {}
    for text in columns:
        field, equals, name = text.partition("=")
        if not equals or not name or field not in (join, "caption"):
            raise ValueError(f"recaption_columns={text!r}: give FIELD=COLUMN, with FIELD one of {join}, caption")
        if name in parsed.get(field, ()) or (field == join and field in parsed):
            raise ValueError(f"recaption_columns={text!r}: {field} is already given; give it once")
        parsed[field] = (*parsed.get(field, ()), name)
    return parsed


def find_files(uri: str, origin: int, join: Join, columns: Sequence[str]) -> list[RecaptionFile]:
    """Looks at a file, or at the files of a folder, in order. Raises ValueError, in one line, if one cannot be used."""
    folder, _, name = uri.rstrip("/").rpartition("/")
    is_file = name.lower().endswith(_ENDINGS)
    try:
        versions = storage.list_versions(folder if is_file else uri)
    except OSError as error:
        raise ValueError(
            f"captions_from={uri}: cannot be read ({error}); check the path, the bucket and the credentials"
        ) from error
    if is_file and name not in versions:  # a folder with such a name
        is_file, versions = False, storage.list_versions(uri)
    names = [one for one in ([name] if is_file else sorted(versions)) if one.lower().endswith(_ENDINGS)]
    names = [one for one in names if storage.is_data(one)]
    if not names:
        storage.check_bucket(uri)
        raise ValueError(
            f"captions_from={uri}: no recaptions there; give a file or a folder of files that end in "
            f"{', '.join(_ENDINGS)}"
        )
    wanted = parse_recaption_columns(columns, join)
    place = folder if is_file else uri
    return [_look(storage.join(place, one), versions[one], origin, join, wanted) for one in names]


def read_recaptions(file: RecaptionFile, *, keys_only: bool = False) -> Iterator[list[Recaption]]:
    """Yields the rows of a file in batches.

    Args:
        keys_only: Whether to leave out the captions, which parquet need not read then.

    Raises:
        ValueError: In one line, if the file is corrupted or a row cannot be read.
    """
    if file.uri.lower().endswith(".parquet"):
        with storage.reporting_corruption(f"captions_from={file.uri}", _FIX):
            yield from _read_parquet(file, keys_only)
        return
    rows = islice(records(file.uri, 0, f"captions_from={file.uri}"), 1, None)
    while batch := list(islice(rows, _ROWS_PER_BATCH)):
        yield [
            Recaption(
                key=_key(record.values.get(file.key)),
                captions=[text for name in file.captions for text in caption_texts(record.values.get(name))],
            )
            for record in batch
        ]


def normal_key(key: str | None, join: Join) -> str | None:
    """Returns the form in which keys are compared. None: there is no key."""
    if key is None or not (key := key.strip()):
        return None
    return url_key(key) if join == "url" else key.lower() if join == "sha256" else key


def _read_parquet(file: RecaptionFile, keys_only: bool) -> Iterator[list[Recaption]]:
    names = [file.key] if keys_only else [file.key, *file.captions]
    filesystem, path = storage.resolve(file.uri)
    source = storage.retry(lambda: filesystem.open_input_file(path), file.uri)
    with pq.ParquetFile(source, buffer_size=_BUFFER_SIZE, pre_buffer=False) as opened:  # else it would hold all of it
        for batch in opened.iter_batches(_ROWS_PER_BATCH, columns=names, use_threads=False):
            keys = texts(batch.column(batch.schema.names.index(file.key)))
            if keys_only:
                yield [Recaption(key=key, captions=[None]) for key in keys]
                continue
            columns = [batch.column(batch.schema.names.index(name)) for name in file.captions]
            said = zip(*(captions({"caption": column}) for column in columns), strict=True)
            yield [
                Recaption(key=key, captions=present([text for part in row for text in part]))
                for key, row in zip(keys, said, strict=True)
            ]


def _look(uri: str, version: str, origin: int, join: Join, wanted: dict[str, tuple[str, ...]]) -> RecaptionFile:
    """Finds the columns of a file."""
    place = f"captions_from={uri}"
    fields: dict[str, pa.Field] = {}
    if uri.lower().endswith(".parquet"):
        with storage.reporting_corruption(place, _FIX), storage.open_parquet(uri) as opened:
            fields = {field.name: field for field in opened.schema_arrow}
        names = [*fields]
    else:
        names = [*next(islice(_values(uri, place), 1), {})]
    found = {field: _columns(names, field, wanted.get(field), place) for field in (join, "caption")}
    for field, columns in found.items():
        for name in columns if fields else ():
            if wrong := wrong_with_column(fields[name], field):
                raise ValueError(f"{place}: {wrong}")
    return RecaptionFile(origin=origin, uri=uri, version=version, key=found[join][0], captions=found["caption"])


def _values(uri: str, place: str) -> Iterator[dict[str, Any]]:
    return (record.values for record in islice(records(uri, 0, place), 1, None))


def _columns(names: Sequence[str], field: str, wanted: Sequence[str] | None, place: str) -> tuple[str, ...]:
    by_lower: dict[str, str] = {}
    for name in names:
        by_lower.setdefault(name.lower(), name)
    if wanted is not None:
        missing = [name for name in wanted if name not in names]
        if missing:
            raise ValueError(
                f"{place}: has no column {missing[0]} (--recaption-columns {field}={missing[0]}), only {shown(names)}"
            )
        return tuple(wanted)
    known = next((by_lower[name] for name in _NAMES[field] if name in by_lower), None)
    if known is None:
        raise ValueError(
            f"{place}: has no column {_NAMES[field][0] if field != 'caption' else 'caption'}, only {shown(names)}; "
            f"name it with --recaption-columns {field}=…"
        )
    return (known,)


def _key(value: object) -> str | None:
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None
