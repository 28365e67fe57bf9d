"""Raw shards: the folder that `groupvit download` writes and `groupvit curate` reads.

    OUT/download.json                 the record: digest of the list, options that fix the result, passes
    OUT/00000.parquet                 a shard of the first pass, as img2dataset writes it: jpg (the original bytes, in
                                      any format; null if the download failed), url, caption, key, status,
                                      error_message, width, height, sha256, captions (all that the list has for
                                      this URL; `caption` is the first), ... and `row`, the position among the
                                      distinct URLs of the list
    OUT/00000_stats.json              written after its shard: a shard without it does not exist
    OUT/retry-0001/urls.parquet       the rows that `--retry-failed` fetched again, sorted by `row`
    OUT/retry-0001/00000.parquet ...  the results for them
    OUT/rejected.jsonl                invalid rows of the list: file, line, reason, and what was found
    OUT/_list/00000.parquet           the URLs to fetch, until all are fetched; re-created if removed
    OUT/_tmp                          work in progress; may be removed when nothing runs

The last pass that fetched a row decides its content. Only failed rows are fetched again, so the first success of a row
is also its last attempt. A folder written by img2dataset itself is readable, too. It has one pass and no `row`.
"""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines import documents, storage
from pipelines.dataset.contents import DownloadRecord, DownloadVersion, ShardStatistics

RECORD = "download.json"
RECORD_VERSION = 2
_READABLE_VERSIONS = (1, 2)
"""In version 1, `row` is the position in the list, and a URL has as many rows as in the list."""
LIST_FOLDER = "_list"
TEMPORARY = "_tmp"
Reason = Literal[
    "connection",
    "dns",
    "invalid_url",
    "noml",
    "not_an_image",
    "refused_address",
    "robots_error",
    "robots_txt",
    "tdm_reservation",
    "timeout",
    "tls",
    "too_large",
    "truncated",
]
"""Reasons for which this downloader itself gives up on a URL."""
_SHARD = re.compile(r"(\d+)\.parquet")
_STATS = re.compile(r"(\d+)_stats\.json")
_NUM_READERS = 16  # small files read from object storage at a time


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RawShard:
    """A finished shard."""

    uri: str
    superseded: npt.NDArray[np.int64]
    """Sorted values of the column `row` that a later pass fetched again. Ignore these rows of this shard."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RawShards:
    """The shards of a download. Without the superseded rows, every row of the list is in exactly one of them."""

    uri: str
    shards: tuple[RawShard, ...]
    digest: str | None
    """Digest of the URL list; None for a folder written by img2dataset itself."""
    finished: bool
    """Whether everything has been fetched."""


def raw_shards(uri: str) -> RawShards:
    """Returns the finished shards in `uri`, ordered by pass and by position in the list.

    Raises ValueError if there are none, or if the record is corrupted or newer than this code.
    """
    uri = storage.absolute(uri)
    record = read_record(uri)
    if record is None:
        stats = read_stats(uri)
        names = [name for name in storage.list_files(uri) if name.endswith(".parquet") and storage.is_data(name)]
        numbers = {name: int(match[1]) if (match := _SHARD.fullmatch(name)) else -1 for name in names}
        finished = [name for name in names if not stats or numbers[name] in stats]
        if not finished:
            raise ValueError(f"{uri}: no finished raw shards; give the folder that `groupvit download` wrote")
        none = np.empty(0, np.int64)
        shards = tuple(RawShard(uri=storage.join(uri, name), superseded=none) for name in finished)
        return RawShards(uri=uri, shards=shards, digest=None, finished=len(finished) == len(names))

    rows_per_shard = record["fixed"]["rows_per_shard"]
    later = np.empty(0, np.int64)
    backwards: list[RawShard] = []
    for part in reversed(record["passes"]):
        folder = storage.join(uri, part["folder"]) if part["folder"] else uri
        rows_of_pass = None if not part["folder"] else _retried_rows(folder)
        fetched: list[npt.NDArray[np.int64]] = []
        for number, stats in sorted(read_stats(folder).items(), reverse=True):
            start = number * rows_per_shard
            rows = (
                np.arange(start, start + stats["count"])
                if rows_of_pass is None
                else rows_of_pass[start : start + stats["count"]]
            )
            if not len(rows):
                raise ValueError(f"{folder}: shard {number} has more rows than its pass; download into another folder")
            # Rows are sorted within a pass, so the rows of a shard are between its first and its last.
            low, high = np.searchsorted(later, rows[0]), np.searchsorted(later, rows[-1], side="right")
            again = later[low:high][np.isin(later[low:high], rows)]
            shard = storage.join(folder, shard_name(number))
            backwards.append(RawShard(uri=shard, superseded=again))
            fetched.append(rows if rows_of_pass is not None else rows[:0])
        later = np.union1d(later, np.concatenate([later[:0], *fetched]))
    if not backwards:
        raise ValueError(f"{uri}: no shard has been finished yet; run the same `groupvit download` again")
    return RawShards(
        uri=uri,
        shards=tuple(reversed(backwards)),
        digest=record["urls"]["digest"],
        finished=all(part["finished"] for part in record["passes"]),
    )


def failure_reason(error_message: str | None) -> str:
    """Returns the reason, in a word, for an `error_message` of a raw shard whose status is not `success`.

    One of `Reason`, `opt_out`, `http_404` and the like, or `other`. Also works for shards written by other tools.
    """
    message = error_message or ""
    prefix = message.partition(":")[0]
    if prefix in get_args(Reason):
        return prefix
    if "is not allowed" in message:  # a redirect out of HTTP
        return "invalid_url"
    if match := re.match(r"HTTP Error (\d{3})", message) or re.search(r"Tunnel connection failed: (407)", message):
        return f"http_{match[1]}"
    return next((reason for pattern, reason in _PATTERNS if re.search(pattern, message)), "other")


_PATTERNS = (
    ("disallowed by X-Robots-Tag", "opt_out"),
    ("timed out", "timeout"),
    ("CERTIFICATE|SSL", "tls"),
    ("not known|name resolution|No address associated|idna", "dns"),
    ("IncompleteRead", "truncated"),
    ("Remote end closed|Connection|Errno 10[0-9]|Errno 11[0-3]|Tunnel", "connection"),
    (
        "unknown url type|control characters|no host given|nonnumeric port|codec can't|Invalid IPv6|label|Invalid URL",
        "invalid_url",
    ),
    ("Image decoding error|cannot identify", "not_an_image"),
    ("hash mismatch", "changed"),
    ("image too small|image area too large|aspect ratio too large", "filtered"),  # by options of img2dataset
)


def nsfw_label(value: Any) -> str:
    """Normalises a value of the column `nsfw` to upper case: NSFW, UNSURE, UNLIKELY or the list's own labels. True and
    1, which some lists use, mean NSFW.
    """
    label = str(value if value is not None else "").strip().upper()
    return "NSFW" if label in ("TRUE", "1", "1.0") else label


def shard_name(number: int) -> str:
    return f"{number:05d}.parquet"


def read_record(uri: str) -> dict[str, Any] | None:
    """Reads download.json. Returns None if it does not exist."""
    try:
        content = storage.read_bytes(storage.join(uri, RECORD), documents.MAX_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ValueError(f"{uri}: cannot be read ({error}); check the bucket and the credentials") from error
    source, fix = storage.join(uri, RECORD), "download into another folder"
    version = documents.parse(content, DownloadVersion, source, fix)["version"]
    if version not in _READABLE_VERSIONS:
        raise ValueError(f"{uri}: {RECORD} has version {version}, not {RECORD_VERSION}; upgrade this code")
    record = documents.parse(content, DownloadRecord, source, fix)
    if version > 1 and "urls" not in record["urls"]:
        raise ValueError(f"{uri}: {RECORD} is corrupted (urls.urls: is missing); download into another folder")
    return record


def write_record(uri: str, record: Mapping[str, Any]) -> None:
    try:
        storage.write_bytes(storage.join(uri, RECORD), (json.dumps(record, indent=2) + "\n").encode())
    except OSError as error:
        raise ValueError(
            f"{uri}: cannot be written ({error}); check the folder, the bucket, the credentials"
        ) from error


def has_shards(uri: str) -> bool:
    """Whether a folder directly contains shards, finished or not, of any tool."""
    return any(_SHARD.fullmatch(name) or _STATS.fullmatch(name) for name in storage.list_files(uri))


def read_stats(
    folder: str, known: Mapping[int, dict[str, Any]] | None = None, *, ending: str = ".parquet"
) -> dict[int, dict[str, Any]]:
    """Reads img2dataset's statistics of each finished shard in `folder`, by number, except those already `known`.

    A shard is finished when both the shard and its complete statistics exist.
    """
    names = storage.list_files(folder)
    shards = {int(stem) for name in names if name.endswith(ending) and (stem := name.removesuffix(ending)).isdecimal()}
    numbers = {int(match[1]): name for name in names if (match := _STATS.fullmatch(name)) and int(match[1]) in shards}
    found = {number: stats for number, stats in (known or {}).items() if number in numbers}
    new = [number for number in numbers if number not in found]
    with ThreadPoolExecutor(_NUM_READERS) as readers:
        read = readers.map(lambda number: _read_stats(storage.join(folder, numbers[number])), new)
        found.update({number: stats for number, stats in zip(new, read, strict=True) if stats is not None})
    return found


def _read_stats(uri: str) -> dict[str, Any] | None:
    try:
        return documents.read(uri, ShardStatistics, "fetch its shard again")
    except (ValueError, FileNotFoundError):
        return None  # its writer was killed while writing, or is writing it again


def failed_rows(shards: RawShards, columns: list[str]) -> Iterator[Any]:
    """Yields tables with `columns`, `row` and `error_message` of the rows whose last attempt failed, shard by shard."""
    for shard in shards.shards:
        with storage.open_parquet(shard.uri) as file:
            table = file.read([*dict.fromkeys([*columns, "row", "status", "error_message"])])
        failed = np.array([status != "success" for status in table.column("status").to_pylist()], bool)
        failed &= ~np.isin(table.column("row").to_numpy(), shard.superseded)
        for name in columns:
            if name not in table.column_names:  # earlier versions wrote fewer columns
                table = table.append_column(name, pa.nulls(table.num_rows))
        yield table.filter(pa.array(failed))


def _retried_rows(folder: str) -> npt.NDArray[np.int64]:
    uri = storage.join(folder, "urls.parquet")
    with storage.reporting_corruption(uri, "download into another folder"), storage.open_parquet(uri) as file:
        return file.read(["row"]).column("row").cast(pa.int64()).to_numpy()
