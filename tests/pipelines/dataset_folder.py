"""Small data sets of noise images, for tests."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.schema import DatasetInfo, sample_id, write_dataset


def make_samples(num_samples, *, seed=0, side=40, corrupt=()):
    """Rows of the dataset schema; the images at the indices `corrupt` cannot be decoded."""
    rng = np.random.default_rng(seed)
    for index in range(num_samples):
        buffer = io.BytesIO()
        pixels = rng.integers(256, size=(side, side + 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer, "JPEG")
        image = buffer.getvalue()[:200] if index in corrupt else buffer.getvalue()
        caption = f"a dog and a ball, number {index} of {seed}"
        yield {
            "sample_id": sample_id(image, caption),
            "image": image,
            "caption": caption,
            "nouns": ["dog", "ball"][: index % 3],
            "width": side + 8,
            "height": side,
            "source": "noise",
        }


def make_dataset(folder: Path, num_samples, *, seed=0, corrupt=(), rows_per_group=8, groups_per_file=3) -> DatasetInfo:
    return write_dataset(
        str(folder),
        make_samples(num_samples, seed=seed, corrupt=corrupt),
        rows_per_group=rows_per_group,
        groups_per_file=groups_per_file,
    )


def damage_files(info: DatasetInfo) -> None:
    """Zeros over the beginning of every file's first row group; footers and manifest stay as they are."""
    for name in info.files:
        file = Path(info.uri, name)
        content = file.read_bytes()
        file.write_bytes(content[:100] + bytes(1000) + content[1100:])
