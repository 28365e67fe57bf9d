"""What all formats of raw shards share: the shard, the piece of work, and the batch of rows that a reader yields."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pipelines import storage

Format = Literal["parquet", "tar", "folder"]
Row = dict[str, Any]
"""Values of one sample by our names: `jpg` (bytes or None), `captions` (at least one, which may be None), and those of
url, license, sha256, similarity, nsfw, punsafe, pwatermark, key, row, status and error_message that the shard has.
`notes` lists what is odd about it: see `pipelines.curation.pieces.Report`."""
Columns = tuple[tuple[str, str], ...]
"""Pairs of our name and a shard's own name of a column. `caption` may be there several times."""
Result = TypeVar("Result")

ROWS_PER_BATCH = 64  # images may be megabytes each
BYTES_PER_BATCH = 2**26  # of images; a batch ends when it has more
MAX_IMAGE_BYTES = 2**27
"""Largest image file that is read, 134 MB, where it is not part of a parquet file. A larger one is dropped."""
SKIP_ADVICE = "download it again, or give --skip-unreadable-shards"


class UnreadableShardError(ValueError):
    """A shard that is corrupted, or not of its format."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A raw shard as described by its footer, or by what stands beside it."""

    source: int
    """Index of its source."""
    uri: str
    version: str
    """Changes when the file changes."""
    rows: tuple[int, ...]
    """Number of rows of each group of rows. A tar is one group."""
    superseded: tuple[int, ...] = ()
    """Values of the column `row` that a later shard replaces. These rows of this shard are ignored."""
    error: str | None = None
    """Why the shard cannot be read, or not to its end."""
    format: Format = "parquet"
    columns: Columns = ()
    """Where the values are."""
    counted: bool = True
    """Whether `rows` is exact. Else it is what an index says, or an estimate."""
    offsets: tuple[int, ...] = ()
    """In bytes, of each group of rows, if the format needs it."""
    description: str = ""
    """The format in words, and where image and captions come from."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Groups of rows `first` to `end` - 1 of a shard."""

    number: int
    """Position in the order of sources, shards and row groups."""
    source: int
    first_of_source: int
    """Number of the first piece of its source."""
    uri: str
    first: int
    end: int
    num_rows: int
    """Number of rows as stored, including superseded ones."""
    superseded: tuple[int, ...] = ()
    format: Format = "parquet"
    columns: Columns = ()
    counted: bool = True
    """Whether `num_rows` is exact."""
    offset: int = 0
    """In bytes, of the first group of rows."""


def or_unreadable(read: Callable[[], Result], uri: str, kind: str, advice: str = SKIP_ADVICE) -> Result:
    """Returns `read()`. Any error that a reader raises on a corrupted file becomes UnreadableShardError.

    Args:
        kind: What the file should be, e.g. "a parquet file".
    """
    try:
        return read()
    except Exception as error:
        if isinstance(error, OSError) and storage.is_of_storage(error):
            raise
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise UnreadableShardError(f"raw={uri}: is not {kind}, or a corrupted one ({text}); {advice}") from error


def batches(rows: Iterator[Row]) -> Iterator[list[Row]]:
    """Yields rows in lists of up to 64, fewer where images are large. What `rows` raises comes after the rows before
    it."""
    batch: list[Row] = []
    num_bytes = 0
    error: Exception | None = None
    while error is None:
        try:
            row = next(rows, None)
        except Exception as caught:
            row, error = None, caught
        if row is not None:
            batch.append(row)
            num_bytes += len(row["jpg"] or b"")
        if batch and (row is None or len(batch) == ROWS_PER_BATCH or num_bytes > BYTES_PER_BATCH):
            yield batch
            batch, num_bytes = [], 0
        if row is None and error is None:
            return
    raise error
