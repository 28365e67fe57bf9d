"""Webdataset tars: members with the same name up to the first dot of their base name are a sample, if they follow each
other. A tar is one piece of work, read from its start to its end.

    a/00017.jpg   the image: jpg, jpeg, png or webp
    a/00017.txt   the caption; .caption is read as well
    a/00017.json  an object with more: captions, url, license, sha256, similarity, …

Nothing else in it is read; no member is unpacked to disk or unpickled.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines import documents, storage
from pipelines.curation.formats.columns import row_of
from pipelines.curation.formats.shard import (
    MAX_IMAGE_BYTES,
    SKIP_ADVICE,
    Columns,
    Piece,
    Row,
    Shard,
    UnreadableShardError,
    batches,
)
from pipelines.curation.formats.tar_stream import ByteStream, Member, is_complete, members

IMAGES = ("jpg", "jpeg", "png", "webp")
"""Of several images of a sample, the first of this order is used."""
_TEXTS = ("txt", "caption")
_MAX_TEXT_BYTES = 2**20
_LOOKED_AT = 32  # samples of a tar that are read to find out what it holds
_INDEX = re.compile(rb"v1\.\d (\d{1,12})\n")  # DALI's, as wds2idx writes it
_USUAL_BYTES_PER_SAMPLE = 2**15
_LONGEST_INDEX_LINE = 64  # bytes
_KIND = "webdataset tars"


def read_shard(
    source: int, uri: str, version: str, wanted: Columns, num_samples: int | None, average: float | None
) -> Shard:
    """Describes a tar by its end and by what stands beside it.

    Args:
        wanted: Keys of the `.json`, from `--columns`.
        num_samples: Number of its samples if an index says so.
        average: Number of bytes per sample of such tars, to estimate the number; None if unknown.
    """
    try:
        complete, size = storage.retry(lambda: (is_complete(uri), ByteStream(uri).size), uri)
    except OSError as error:
        raise ValueError(f"raw={uri}: cannot be read ({error}); check the bucket and the credentials") from error
    estimate = round(size / (average or _USUAL_BYTES_PER_SAMPLE))
    return Shard(
        source=source,
        uri=uri,
        version=version,
        rows=(max(1, estimate if num_samples is None else num_samples),),
        error=None if complete else f"raw={uri}: is cut, or not a tar (the mark at its end is missing); {SKIP_ADVICE}",
        format="tar",
        columns=wanted,
        counted=False,
        description=f"{_KIND}: images {', '.join(IMAGES)}, captions in {_captions_from(wanted)}",
    )


def _captions_from(wanted: Columns) -> str:
    named = [name for field, name in wanted if field == "caption"]
    return f"{', '.join(named)} of json" if named else "txt, caption or json"


def bytes_per_sample(uri: str) -> float | None:
    """Returns the average size of the first samples of a tar; None if it cannot be read.

    Raises ValueError if none of them has image and text.
    """
    num_samples, usable, num_bytes = 0, False, 0
    try:
        stream = ByteStream(uri)
        for group in _groups(stream):
            num_samples, num_bytes = num_samples + 1, stream.position
            usable = usable or bool(group.image and group.texts)
            if num_samples == _LOOKED_AT:
                break
    except (ValueError, OSError):  # its reader will say so
        if not usable:
            return None
    if num_samples and not usable:
        raise ValueError(
            f"raw={uri}: none of its first {num_samples} samples has both an image ({', '.join(IMAGES)}) and a text "
            f"({', '.join(_TEXTS)}, json) of the same name after each other; write the tar again in the order of "
            "names, as tar --sort=name does"
        )
    return num_bytes / num_samples if num_samples else None


def read_index(names: frozenset[str], folder: str, name: str, stats: Mapping[str, Any] | None) -> int | None:
    """Returns the number of samples of a tar that img2dataset's statistics or DALI's index beside it say."""
    if stats is not None:
        return stats.get("successes")
    index = f"{name.removesuffix('.tar')}.idx"
    if index not in names:
        return None
    match = _INDEX.match(ByteStream(storage.join(folder, index)).read(_LONGEST_INDEX_LINE))
    return int(match[1]) if match else None


def read_rows(piece: Piece) -> Iterator[list[Row]]:
    """Yields the samples of a tar in batches of up to 64.

    Raises UnreadableShardError for a corrupted or cut tar, after yielding the samples before, and OSError if storage
    fails.
    """
    return batches(_rows(piece))


def _rows(piece: Piece) -> Iterator[Row]:
    try:
        for group in _groups(ByteStream(piece.uri)):
            yield _row(group, piece.columns)
    except ValueError as error:
        raise UnreadableShardError(
            f"raw={piece.uri}: is not a tar, or a corrupted one ({error}); {SKIP_ADVICE}"
        ) from None


@dataclass(kw_only=True)
class _Group:
    """The members of a sample."""

    key: str
    image: bytes | None = None
    image_kind: str = ""
    texts: dict[str, bytes] = field(default_factory=dict)
    """Content by ending."""
    notes: dict[str, None] = field(default_factory=dict)
    too_large: bool = False


def _groups(stream: ByteStream) -> Iterator[_Group]:
    """Yields the samples of a tar. One that is cut is not yielded."""
    group: _Group | None = None
    for member in members(stream):
        key, ending = _split(member.name)
        if key is None or not (member.is_file or member.is_link):
            continue
        if group is None or group.key != key:
            if group is not None:
                yield group
            group = _Group(key=key)
        if member.is_link:
            group.notes["link"] = None
        elif ending in IMAGES:
            _add_image(group, ending, member, stream)
        elif ending in (*_TEXTS, "json") and ending not in group.texts and member.size <= _MAX_TEXT_BYTES:
            group.texts[ending] = stream.read(member.size)
    if group is not None:
        yield group


def _split(name: str) -> tuple[str | None, str]:
    """Returns key and ending of a member, as webdataset does. The key is only compared: it may be any path."""
    folder, slash, base = name.rpartition("/")
    stem, dot, ending = base.partition(".")
    if not stem or not dot or (stem.startswith("__") and stem.endswith("__")):
        return None, ""
    return f"{folder}{slash}{stem}", ending.lower()


def _add_image(group: _Group, kind: str, member: Member, stream: ByteStream) -> None:
    if not member.size:
        return
    if group.image is not None or group.too_large:
        group.notes["several_images"] = None
        if group.image is not None and IMAGES.index(kind) >= IMAGES.index(group.image_kind):
            return
    group.too_large = member.size > MAX_IMAGE_BYTES
    group.image = None if group.too_large else stream.read(member.size)
    group.image_kind = kind


def _row(group: _Group, wanted: Columns) -> Row:
    values: dict[str, Any] = {}
    if content := group.texts.get("json"):
        try:
            values = documents.parse(content, dict[str, Any], group.key, "")
        except ValueError:
            group.notes["invalid_json"] = None
    row = row_of(values, wanted)
    named = any(field == "caption" for field, _ in wanted)
    texts = [_decoded(group.texts[kind]) for kind in _TEXTS if kind in group.texts]
    if texts and not named and not values.get("captions"):  # a list in the .json is more than the .txt
        row["captions"] = texts[:1]
    row |= {"key": group.key, "jpg": group.image, "notes": tuple(group.notes)}
    return row | {"status": "failed", "error_message": "too_large"} if group.too_large else row


def _decoded(content: bytes) -> str | None:
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None
