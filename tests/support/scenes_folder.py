"""Writes small scenes folders by the contract, without the demo's code: coloured rectangles with exact masks."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.image_files import png

COLOURS = {"red square": (220, 40, 40), "green square": (40, 200, 60), "blue square": (50, 60, 220)}
CLASSES = ("background", *COLOURS)


def write_scenes(
    folder: Path, num_scenes: int, *, classes: tuple[str, ...] = CLASSES, seed: int = 0, row_group_size: int = 5
) -> Path:
    """Scenes of several sizes, alternately of the parts seen and unseen, in two files; some pixels are ignored."""
    rng = np.random.default_rng(seed)
    rows = []
    offset = int(classes[0] == "background")
    for index in range(num_scenes):
        height, width = (int(side) for side in rng.integers(40, 72, 2))
        image = rng.integers(90, 140, (height, width, 3), dtype=np.uint8)
        mask = np.zeros((height, width), dtype=np.uint8)
        label = int(rng.integers(len(COLOURS)))
        top, left = int(rng.integers(0, height - 30)), int(rng.integers(0, width - 30))
        image[top : top + 24, left : left + 24] = list(COLOURS.values())[label]
        mask[top : top + 24, left : left + 24] = label + offset
        mask[:2] = 255
        caption = f"a photo of a {list(COLOURS)[label]}"
        sample_id = hashlib.sha256(image.tobytes()).hexdigest()[:16]
        part = ("seen", "unseen")[index % 2]
        rows.append(
            {"sample_id": sample_id, "image": png(image), "mask": png(mask), "caption": caption, "part": part}
            | {"width": width, "height": height}
        )
    (folder / "data").mkdir(parents=True)
    half = len(rows) // 2
    for number, some in enumerate((rows[:half], rows[half:])):
        pq.write_table(
            pa.Table.from_pylist(some), folder / "data" / f"{number:05d}.parquet", row_group_size=row_group_size
        )
    description = {
        "schema_version": 1,
        "classes": classes,
        "parts": ["seen", "unseen"],
        "counts": {"seen": (num_scenes + 1) // 2, "unseen": num_scenes // 2},
        "digest": hashlib.sha256(repr(rows).encode()).hexdigest(),
    }
    (folder / "scenes.json").write_text(json.dumps(description))
    return folder
