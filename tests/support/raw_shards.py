"""Raw shards for tests: pictures that look different to a perceptual hash, and the columns img2dataset writes."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from pipelines.demo.raw import RAW_SCHEMA, write_raw_shards
from tests.support.image_files import encoded

SCHEMA = RAW_SCHEMA.append(pa.field("exif", pa.string()))


def picture(seed: int, width: int = 96, height: int = 80) -> Image.Image:
    """Noise at several scales, as photos have it; another seed is another picture."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((height, width, 3))
    for side in (4, 8, 16, 32):
        noise = Image.fromarray(rng.integers(256, size=(side, side, 3), dtype=np.uint8))
        pixels += np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float64) / 4
    return Image.fromarray(pixels.astype(np.uint8))


def raw_row(number: int, image: bytes | None, caption: str | None = None, **columns: Any) -> dict[str, Any]:
    """A row as downloaded; without an image, as failed."""
    return {
        "url": f"http://example.org/{number}.jpg",
        "caption": f"a dog and the ball number {number}" if caption is None else caption,
        "key": f"{number:09d}",
        "status": "success" if image is not None else "failed_to_download",
        "error_message": None if image is not None else "HTTP Error 404: Not Found",
        "sha256": hashlib.sha256(image).hexdigest() if image is not None else None,
        "jpg": image,
        **columns,
    }


def good_rows(numbers: Iterable[int], **size: int) -> list[dict[str, Any]]:
    return [raw_row(number, encoded(picture(number, **size), quality=85)) for number in numbers]


def write_shards(
    folder: Path, rows: Sequence[Mapping[str, Any]], rows_per_shard: int, schema: pa.Schema = SCHEMA
) -> Path:
    write_raw_shards(str(folder), rows, rows_per_shard=rows_per_shard, schema=schema)
    return folder
