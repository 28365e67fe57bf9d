"""Writes raw shards as img2dataset does, so that the demo can start where a download ends.

DIR/00000.parquet …   key, url, caption, status, jpg, width, height, sha256, …
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.dataset.format import batched

ROWS_PER_SHARD, ROWS_PER_GROUP = 10_000, 100  # img2dataset's defaults
RAW_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("url", pa.string()),
        ("caption", pa.string()),
        ("status", pa.string()),
        ("error_message", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("original_width", pa.int32()),
        ("original_height", pa.int32()),
        ("sha256", pa.string()),
        ("jpg", pa.binary()),
    ]
)


def write_raw_shards(
    uri: str,
    rows: Iterable[Mapping[str, Any]],
    *,
    rows_per_shard: int = ROWS_PER_SHARD,
    schema: pa.Schema = RAW_SCHEMA,
) -> None:
    """Writes rows with the columns of `schema` as shards."""
    for shard, part in enumerate(batched(rows, rows_per_shard)):
        buffer = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(part, schema), buffer, row_group_size=ROWS_PER_GROUP)
        storage.write_bytes(storage.join(uri, f"{shard:05d}.parquet"), memoryview(buffer.getvalue()))


def downloaded(samples: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yields the rows of samples (image, one caption, width, height) whose downloads all succeeded."""
    for number, sample in enumerate(samples):
        shard, index = divmod(number, ROWS_PER_SHARD)
        key = f"{shard:05d}{index:04d}"
        size = {"width": sample["width"], "height": sample["height"]}
        [caption] = sample["captions"]
        yield {
            "key": key,
            "url": f"demo:{key}",
            "caption": caption,
            "status": "success",
            **size,
            **{f"original_{name}": pixels for name, pixels in size.items()},
            "sha256": hashlib.sha256(sample["image"]).hexdigest(),
            "jpg": sample["image"],
        }
