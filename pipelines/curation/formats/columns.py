"""Finds what the columns of other people's data mean: by `--columns`, or by their usual names."""

import re
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from pipelines.curation.formats.shard import Columns, Row

USUAL_NAMES: Mapping[str, tuple[str, ...]] = {
    "image": ("jpg", "image", "jpeg", "png", "webp", "img", "picture", "photo", "image_bytes", "image_data", "bytes"),
    "caption": (
        *("captions", "caption", "text", "texts", "txt", "sentences", "sentence", "alt_text", "alttext", "alt"),
        *("description", "title", "prompt"),
    ),
    "url": ("url", "image_url", "img_url"),
    "license": ("license", "licence"),
    "sha256": ("sha256",),
    "similarity": ("similarity",),
    "nsfw": ("nsfw",),
    "punsafe": ("punsafe",),
    "pwatermark": ("pwatermark",),
}
"""Names of columns by what they hold, in lower case, the most likely first."""
SCORES = frozenset({"similarity", "punsafe", "pwatermark"})
_NO_VALUES: Mapping[str, Any] = {name: None for name in USUAL_NAMES if name not in ("image", "caption")}
_MOST_CAPTIONS = 1000  # of a row
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


def parse_columns(texts: Sequence[str]) -> dict[str, list[str]]:
    """Parses `--columns image=photo caption=alt`. Raises ValueError for an unknown field."""
    parsed: dict[str, list[str]] = {}
    for text in texts:
        field, equals, name = text.partition("=")
        if not equals or not name or field not in USUAL_NAMES:
            raise ValueError(f"columns={text!r}: give FIELD=COLUMN, with FIELD one of {', '.join(USUAL_NAMES)}")
        if field != "caption" and field in parsed:
            raise ValueError(f"columns={text!r}: {field} is already {parsed[field][0]!r}; give one column for it")
        if name in parsed.setdefault(field, []):
            raise ValueError(f"columns={text!r} is given twice; give it once")
        parsed[field].append(name)
    return parsed


def find_columns(names: Sequence[str], wanted: Mapping[str, Sequence[str]], fields: Sequence[str]) -> Columns:
    """Returns the column of each of `fields` that exists, with as many as there are for `caption`.

    Columns `caption_0`, `caption_1`, … are all used, if there is none with a usual name.

    Raises:
        ValueError: A column of `wanted` does not exist, or a required one is not found. One line, without the file.
    """
    found: list[tuple[str, str]] = []
    by_lower: dict[str, str] = {}
    for name in names:
        by_lower.setdefault(name.lower(), name)
    for field in fields:
        for name in wanted.get(field, ()):
            if name not in names and name.lower() not in by_lower:
                raise ValueError(f"has no column {name} (--columns {field}={name}), only {shown(names)}")
            found.append((field, name if name in names else by_lower[name.lower()]))
        if field not in wanted:
            known = next((by_lower[name] for name in USUAL_NAMES[field] if name in by_lower), None)
            several = _numbered_captions(names) if field == "caption" and known is None else []
            found += [(field, name) for name in ([known] if known is not None else several)]
    return tuple(found)


def shown(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (", …" if len(names) > 12 else "") or "none"


def sha256_of(value: object) -> str | None:
    """Returns a hash that a data set states, or None for anything else: it would make different images equal."""
    return value if isinstance(value, str) and _SHA256.fullmatch(value) else None


def number_of(value: object) -> float | None:
    """Returns a score, or None if `value` is not a number."""
    try:
        return float(value)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError, OverflowError):
        return None


def _numbered_captions(names: Sequence[str]) -> list[str]:
    found = [(int(match[1]), name) for name in names if (match := re.fullmatch(r"captions?_?(\d{1,3})", name.lower()))]
    return [name for _, name in sorted(found)]


def row_of(values: Mapping[str, Any], wanted: Columns) -> Row:
    """Makes a row, without its image, of values as JSON or csv have them: by `wanted`, else by the usual names.

    Numbers are not captions. Texts that cannot be encoded (lone surrogates) count as missing.
    """
    if not values:
        return {**_NO_VALUES, "captions": [None]}
    row: Row = {}
    by_lower: dict[str, str] = {}
    for name in values:
        by_lower.setdefault(name.lower(), name)
    for field in USUAL_NAMES:
        names = [name for known, name in wanted if known == field]
        if not names:
            usual = (by_lower[name] for name in USUAL_NAMES[field] if name in by_lower)
            names = [*islice(usual, 1)] or (_numbered_captions([*values]) if field == "caption" else [])
        found = [values.get(name if name in values else by_lower.get(name.lower(), name)) for name in names]
        if field == "caption":
            texts = [text for value in found for text in caption_texts(value)]
            row["captions"] = (present(texts) if len(found) > 1 else texts) or [None]
        elif field != "image":
            row[field] = _value(field, found[0]) if found else None
    return row


def caption_texts(value: object) -> list[str | None]:
    """Returns the captions in a value as JSON or csv have it: a text, or a list of texts."""
    return [_text(part) for part in value[:_MOST_CAPTIONS]] if isinstance(value, list) else [_text(value)]


def _value(field: str, value: object) -> Any:
    if field in SCORES:
        return number_of(value)
    if field == "sha256":
        return sha256_of(value)
    return str(value) if isinstance(value, int | float) and value == value else _text(value)


def present(captions: list[str | None]) -> list[str | None]:
    """Leaves out missing captions of a row of several columns; a row has at least one, which may be missing."""
    return [caption for caption in captions if caption is not None] or [None]


def _text(value: object) -> str | None:
    if not isinstance(value, str):
        return None
    try:
        value.encode()
    except UnicodeEncodeError:
        return None
    return value
