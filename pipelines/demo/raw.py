"""Writes raw shards as img2dataset does, so that the demo can start where a download ends.

DIR/00000.parquet …   key, url, caption, status, jpg, width, height, sha256, …
"""

import hashlib
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage

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


def write_raw_shards(uri: str, samples: Iterable[Mapping[str, Any]]) -> None:
    """Writes samples (image, one caption, width, height) as shards whose downloads all succeeded."""
    iterator = iter(samples)
    for shard in itertools.count():
        part = itertools.islice(iterator, ROWS_PER_SHARD)
        rows = [_row(f"{shard:05d}{index:04d}", sample) for index, sample in enumerate(part)]
        if not rows:
            return
        buffer = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows, RAW_SCHEMA), buffer, row_group_size=ROWS_PER_GROUP)
        storage.write_bytes(storage.join(uri, f"{shard:05d}.parquet"), memoryview(buffer.getvalue()))


def _row(key: str, sample: Mapping[str, Any]) -> dict[str, Any]:
    size = {"width": sample["width"], "height": sample["height"]}
    [caption] = sample["captions"]
    return {
        "key": key,
        "url": f"demo:{key}",
        "caption": caption,
        "status": "success",
        **size,
        **{f"original_{name}": pixels for name, pixels in size.items()},
        "sha256": hashlib.sha256(sample["image"]).hexdigest(),
        "jpg": sample["image"],
    }
