"""Writes a scenes folder: images with masks, in the format that `pipelines/benchmarks/scenes.py` reads.

DIR/data/*.parquet   sample_id, image, mask, caption, part, width, height
DIR/scenes.json      written last: schema_version, classes, parts, counts, digest
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.dataset.format import batched

SCENES_SCHEMA_VERSION = 1
SCENES_SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("image", pa.binary()),
        ("mask", pa.binary()),
        ("caption", pa.string()),
        ("part", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
    ]
)
ROWS_PER_GROUP = 100


def write_scenes(
    uri: str, rows: Iterable[dict[str, Any]], *, classes: tuple[str, ...], parts: tuple[str, ...]
) -> dict[str, Any]:
    """Writes rows of SCENES_SCHEMA and finally scenes.json, whose content it returns. Replaces an existing folder."""
    counts: Counter[str] = Counter()
    digest = hashlib.sha256(json.dumps([classes, parts]).encode())
    buffer = pa.BufferOutputStream()
    with pq.ParquetWriter(buffer, SCENES_SCHEMA) as writer:
        for group in batched(rows, ROWS_PER_GROUP):
            for row in group:
                counts[row["part"]] += 1
                digest.update(f"{row['sample_id']} {row['part']}\n".encode())
            writer.write_table(pa.Table.from_pylist(group, SCENES_SCHEMA))
    storage.write_bytes(storage.join(uri, "data", "00000.parquet"), memoryview(buffer.getvalue()))
    description = {
        "schema_version": SCENES_SCHEMA_VERSION,
        "classes": list(classes),
        "parts": list(parts),
        "counts": {part: counts[part] for part in parts},
        "digest": digest.hexdigest(),
    }
    storage.write_bytes(storage.join(uri, "scenes.json"), (json.dumps(description, indent=1) + "\n").encode())
    return description
