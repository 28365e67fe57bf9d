"""The random resized crop of training (arXiv 1409.4842): its rectangle, and two ways to resize it."""

import math
import random
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image

Pixels = npt.NDArray[np.uint8]


class Box(NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, pixels: Pixels) -> Pixels:
        """Return the rectangle of pixels [H,W,…], a view."""
        return pixels[self.top : self.top + self.height, self.left : self.left + self.width]

    def reduced(self, divisor: int) -> "Box":
        """Return the rectangle in the image at 1/divisor of its size; its edges are rounded to whole pixels."""
        edges = (self.top, self.left, self.top + self.height, self.left + self.width)
        top, left, bottom, right = ((2 * edge + divisor) // (2 * divisor) for edge in edges)
        return Box(top, left, bottom - top, right - left)


def draw_box(
    image_height: int, image_width: int, scale: tuple[float, float], ratio: tuple[float, float], rng: random.Random
) -> Box:
    """Draw the rectangle of a random resized crop. `scale` is its share of the area, `ratio` its width over height."""
    for _ in range(10):
        area = rng.uniform(*scale) * image_height * image_width
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        width = round(math.sqrt(area * aspect))
        height = round(math.sqrt(area / aspect))
        if 0 < width <= image_width and 0 < height <= image_height:
            return Box(rng.randint(0, image_height - height), rng.randint(0, image_width - width), height, width)
    # No crop fits, for example in a panorama: take the largest centre crop that the ratio allows.
    width = min(image_width, max(round(image_height * ratio[1]), 1))
    height = min(image_height, max(round(image_width / ratio[0]), 1))
    return Box((image_height - height) // 2, (image_width - width) // 2, height, width)


def resize_by_pillow(pixels: Pixels, side: int) -> Image.Image:
    """Resize uint8 [H,W,3] to a square (bilinear, antialiased)."""
    return Image.fromarray(np.ascontiguousarray(pixels)).resize((side, side), Image.Resampling.BILINEAR)


def resize_by_torch(pixels: Pixels, side: int) -> Pixels:
    """Do the same with torch's SIMD code, in a third of the time. Returns uint8 [side,side,3].

    Weights are rounded to 16 bits, where Pillow has 22: one value in 700 differs by 1, few by 2. The result is the same
    on every CPU.
    """
    batch = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)  # channels last, which needs no copy
    return F.interpolate(batch, size=(side, side), mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()
