"""Finds out what lies at the URI of a source: which files, of which format. Shard ranges are written out."""

import re
from dataclasses import dataclass

from pyarrow import fs

from pipelines import storage
from pipelines.curation.formats.shard import Format
from pipelines.dataset.raw_shards import RECORD

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.tsv")
"""Files that describe a folder of images, if only the folder is given."""
_TABLES = (".jsonl", ".csv", ".tsv")
_RANGE = re.compile(r"\{(\d{1,12})\.\.(\d{1,12})\}")
_MOST_FILES = 1_000_000
_ENDINGS: dict[str, Format] = {".tar": "tar", ".parquet": "parquet"}


@dataclass(frozen=True, kw_only=True)
class Place:
    """The files of a source."""

    format: Format
    folder: str
    names: tuple[str, ...] | None
    """Files in `folder`, in order. None: all of the format."""


def look(uri: str) -> Place:
    """Looks at a source. A folder with tars is taken to be one of tars (img2dataset writes parquet without images to it
    too), else of parquet, else one that a file of METADATA describes.

    Raises ValueError, in one line, if no file of a known format lies there.
    """
    try:
        return _look(uri)
    except NotADirectoryError:
        raise ValueError(
            f"raw={uri}: is not a folder; give one, or a tar, a parquet file, a range of them, or a table of images "
            f"({', '.join(_TABLES)})"
        ) from None
    except OSError as error:
        raise ValueError(f"raw={uri}: cannot be read ({error}); check the bucket and the credentials") from error


def _look(uri: str) -> Place:
    if _RANGE.search(uri):
        return _of_range(uri)
    folder, _, name = uri.rstrip("/").rpartition("/")
    ending = next((ending for ending in _ENDINGS if name.lower().endswith(ending)), None)
    if (ending or name.lower().endswith(_TABLES)) and _is_file(uri):
        return Place(format=_ENDINGS[ending] if ending else "folder", folder=folder, names=(name,))
    names = [name for name in storage.list_files(uri) if storage.is_data(name)]
    if RECORD not in names and any(name.lower().endswith(".tar") for name in names):
        return Place(format="tar", folder=uri, names=tuple(name for name in names if name.lower().endswith(".tar")))
    described = [name for name in METADATA if name in names]
    if described and not any(name.lower().endswith(".parquet") for name in names):
        if len(described) > 1:
            raise ValueError(f"raw={uri}: has {' and '.join(described)}; remove all but one, or give the file itself")
        return Place(format="folder", folder=uri, names=(described[0],))
    return Place(format="parquet", folder=uri, names=None)


def nothing_found(uri: str) -> str:
    """Says what lies in a folder without raw shards, as a hint; empty if nothing does."""
    names = storage.list_files(uri)
    if any(name.lower().endswith((".tar.gz", ".tgz", ".tar.zst")) for name in names):
        return "; tars must not be compressed: unpack them with gunzip"
    if any(name.lower().endswith((".jpg", ".jpeg", ".png", ".webp")) for name in names):
        return f"; to read a folder of images, write one of {', '.join(METADATA)} into it"
    below = [
        name
        for name in storage.list_folders(uri)[:20]
        if any(known.lower().endswith((*_ENDINGS, *METADATA)) for known in storage.list_files(storage.join(uri, name)))
    ]
    return f"; there are some in its folder {below[0]}: give that" if below else ""


def _of_range(uri: str) -> Place:
    uris = _written_out(uri)
    folder, _, first = uris[0].rpartition("/")
    ending = next((ending for ending in _ENDINGS if first.lower().endswith(ending)), None)
    if ending is None or any(one.rpartition("/")[0] != folder for one in uris):
        raise ValueError(f"raw={uri}: a range names tars or parquet files of one folder, e.g. DIR/{{00000..00331}}.tar")
    names = tuple(one.rpartition("/")[2] for one in uris)
    missing = sorted(set(names).difference(storage.list_files(folder)))
    if missing:
        storage.check_bucket(folder)
        raise ValueError(f"raw={uri}: {len(missing):,} of {len(names):,} files are missing, first {missing[0]}")
    return Place(format=_ENDINGS[ending], folder=folder, names=names)


def _written_out(uri: str) -> list[str]:
    """Replaces ranges `{000..331}` by their numbers, with as many digits as the first has."""
    uris = [uri]
    while match := _RANGE.search(uris[0]):
        first, last = int(match[1]), int(match[2])
        if last < first or (last - first + 1) * len(uris) > _MOST_FILES:
            raise ValueError(f"raw={uri}: the range {match[0]} must go up, to at most {_MOST_FILES:,} files")
        numbers = [f"{number:0{len(match[1])}d}" for number in range(first, last + 1)]
        uris = [_RANGE.sub(number, one, count=1) for one in uris for number in numbers]
    return uris


def _is_file(uri: str) -> bool:
    filesystem, path = storage.resolve(uri)
    return storage.retry(lambda: filesystem.get_file_info(path), uri).type == fs.FileType.File
