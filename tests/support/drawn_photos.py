"""Drawn images with VOC's labels, for tests that need more than the three photos, and none from the network."""

import io

import numpy as np
from PIL import Image

from tests.support.image_files import encoded, png
from tests.support.miniatures import Photo

COLOURS = {
    5: (200, 60, 40),
    6: (40, 90, 210),
    7: (230, 200, 40),
    9: (120, 60, 160),
    15: (230, 160, 120),
    18: (30, 150, 90),
}
"""VOC's values (bottle, bus, car, chair, person, sofa) and the colour of each."""


def drawn_photos(count: int, *, seed: int = 0) -> list[Photo]:
    """Images of several sizes: ellipses and boxes of some classes on a noisy ground, ignored along their borders."""
    rng = np.random.default_rng(seed)
    return [_drawn(f"2008_{number:06d}", rng) for number in range(count)]


def _drawn(name: str, rng: np.random.Generator) -> Photo:
    height, width = (int(side) for side in (rng.integers(140, 200), rng.integers(180, 360)))
    rows, columns = np.mgrid[:height, :width]
    tint = rng.integers(90, 140, 3)
    coarse = rng.normal(0, 12, (height // 8 + 1, width // 8 + 1, 3)).repeat(8, axis=0).repeat(8, axis=1)
    pixels = tint + coarse[:height, :width] + rng.normal(0, 15, (height, width, 3))
    values = np.zeros((height, width), np.uint8)
    for value in rng.choice(list(COLOURS), int(rng.integers(2, 4)), replace=False).tolist():
        half_height, half_width = height * rng.uniform(0.12, 0.3), width * rng.uniform(0.12, 0.3)
        top, left = rng.uniform(0.2, 0.8) * height, rng.uniform(0.2, 0.8) * width
        y, x = (rows - top) / half_height, (columns - left) / half_width
        distance = np.maximum(abs(y), abs(x)) if value % 2 else np.hypot(y, x)
        inside = distance < 1
        pixels[inside] = np.array(COLOURS[value]) + 30 * np.sin(columns[inside] / 2)[:, None]
        pixels[inside] += rng.normal(0, 10, (int(inside.sum()), 3))
        values[distance < 1.06] = 255
        values[inside] = value
    image = np.clip(pixels, 0, 255).astype(np.uint8)
    return Photo(name, encoded(Image.fromarray(image), quality=92), png(values))


def with_masks(photo: Photo) -> tuple[np.ndarray, np.ndarray]:
    """The image uint8 [H, W, 3] as its file holds it, and its labels."""
    with Image.open(io.BytesIO(photo.jpeg)) as file:
        return np.array(file), photo.values
