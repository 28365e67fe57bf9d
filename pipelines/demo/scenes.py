"""Writes a scenes folder: images with masks, the form `pipelines/benchmarks/scenes.py` reads.

DIR/data/*.parquet   sample_id, image, mask, caption, part, width, height
DIR/scenes.json      written last: schema_version, classes, parts, counts, digest
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

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


def write_scenes(folder: Path, rows: Iterable[dict], *, classes: tuple[str, ...], parts: tuple[str, ...]) -> dict:
    """Writes rows of SCENES_SCHEMA and, last, scenes.json, whose content is returned. An old folder is replaced."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "data").mkdir(parents=True)
    counts: Counter[str] = Counter()
    digest = hashlib.sha256(json.dumps([classes, parts]).encode())
    pending: list[dict] = []
    with pq.ParquetWriter(folder / "data" / "00000.parquet", SCENES_SCHEMA) as writer:
        for row in rows:
            counts[row["part"]] += 1
            digest.update(f"{row['sample_id']} {row['part']}\n".encode())
            pending.append(row)
            if len(pending) == ROWS_PER_GROUP:
                writer.write_table(pa.Table.from_pylist(pending, SCENES_SCHEMA))
                pending = []
        if pending:
            writer.write_table(pa.Table.from_pylist(pending, SCENES_SCHEMA))
    description = {
        "schema_version": SCENES_SCHEMA_VERSION,
        "classes": list(classes),
        "parts": list(parts),
        "counts": {part: counts[part] for part in parts},
        "digest": digest.hexdigest(),
    }
    temporary = folder / ".scenes.json"
    temporary.write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    temporary.rename(folder / "scenes.json")
    return description
