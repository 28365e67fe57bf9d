"""A folder of images with a file that describes them, a row for each: metadata.csv, .tsv or .jsonl.

The path of an image, relative to that file, is in `file_name`, as `datasets` calls it, or a column of a similar name.
"""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from pipelines import documents, storage
from pipelines.curation.formats.columns import USUAL_NAMES, row_of, shown
from pipelines.curation.formats.shard import MAX_IMAGE_BYTES, ROWS_PER_BATCH, Columns, Piece, Row, Shard
from pipelines.curation.formats.text_rows import FIX, Record, records

_FILE_NAMES = ("file_name", "filename", "file", "image_path", "filepath", "path", "image", "img")
_NUM_THREADS = 16  # that wait for storage


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
    all_records = records(uri, 0, f"raw={uri}")
    start = next(all_records).end  # of the header, or 0
    while batch := list(islice(all_records, ROWS_PER_BATCH)):
        for record in batch:
            path = _path(record, wanted, uri)
            if path not in sizes:
                num_missing, first_missing = num_missing + 1, first_missing or path
        captions_in |= dict.fromkeys(_caption_columns(batch[0], wanted))
        rows.append(len(batch))
        offsets.append(start)
        start = batch[-1].end
    if rows and not captions_in:
        [first] = islice(records(uri, offsets[0], f"raw={uri}"), 1, 2)
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
    of_piece = islice(records(piece.uri, piece.offset, f"raw={piece.uri}"), 1, 1 + piece.num_rows)
    with ThreadPoolExecutor(_NUM_THREADS) as threads:
        while batch := list(islice(of_piece, ROWS_PER_BATCH)):
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


def _path(record: Record, wanted: Columns, uri: str) -> str:
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
            f"raw={uri}: line {record.line}: {name} is {str(value)[:80]!r}, not the path of an image; {FIX}"
        )
    return documents.in_folder(
        value.removeprefix("./"), f"raw={uri}: line {record.line}", "give paths below the folder of this file"
    )


def _caption_columns(record: Record, wanted: Columns) -> list[str]:
    named = [name for field, name in wanted if field == "caption"]
    by_lower = {name.lower(): name for name in record.values}
    usual = [by_lower[name] for name in USUAL_NAMES["caption"] if name in by_lower]
    return [name for name in named if name in record.values] if named else usual[:1]
