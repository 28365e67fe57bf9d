"""Resizes images for segmentation and cuts them into windows. NumPy and Pillow only.

All that segments images by the model uses this, on any runtime, since a pixel that differs by one level moves edges of
masks.
"""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from groupvit.config import SegmentationConfig

Box = tuple[int, int, int, int]
"""(top, bottom, left, right)."""

_ROWS_AT_ONCE = 16
"""Few enough for a processor's cache."""


def resized_pixels(
    image: NDArray[np.uint8], config: SegmentationConfig, patch_size: int, scale: float = 1.0
) -> NDArray[np.uint8]:
    """Resize an image for cutting into windows: uint8 [H, W, 3] → uint8 [H', W', 3].

    If the image is not cut along a side, both sides become multiples of the patch size.
    """
    short_side = round(scale * (min(image.shape[:2]) if config.short_side is None else config.short_side))
    long_side = round(scale * config.max_long_side)
    resized = resize_short_side(image, short_side, max_long_side=long_side, antialias=config.antialias)
    if config.window is None or min(resized.shape[:2]) < config.window:
        resized = resize_short_side(
            image, short_side, max_long_side=long_side, multiple_of=patch_size, antialias=config.antialias
        )
    return resized


def windows(height: int, width: int, side: int | None, stride: int) -> Iterator[Box]:
    """Yield boxes that cover the image. The last one of a row or column is shifted to end at the edge."""
    if side is None:
        yield 0, height, 0, width
        return
    for row in range(max(math.ceil((height - side) / stride), 0) + 1):
        for column in range(max(math.ceil((width - side) / stride), 0) + 1):
            bottom, right = min(row * stride + side, height), min(column * stride + side, width)
            yield max(bottom - side, 0), bottom, max(right - side, 0), right


def resize_short_side(
    pixels: NDArray[np.uint8],
    short_side: int,
    *,
    max_long_side: int = 2048,
    multiple_of: int = 1,
    antialias: bool = True,
) -> NDArray[np.uint8]:
    """Resize uint8 [H,W,3] (bilinear), keeping its aspect ratio.

    Args:
        pixels: uint8 [H,W,3].
        short_side: Short side of the result in pixels. It is smaller if the long side would exceed `max_long_side`. The
            paper's protocol for segmentation is 448 and 2048.
        max_long_side: Largest long side in pixels.
        multiple_of: Both sides are rounded to a multiple of this, at least one.
        antialias: Whether to use antialiasing. Without it, the result equals OpenCV's bilinear resize up to rounding.
    """
    height, width = pixels.shape[:2]
    scale = min(short_side / min(height, width), max_long_side / max(height, width))
    new_height, new_width = (max(int(side * scale / multiple_of + 0.5), 1) * multiple_of for side in (height, width))
    return resize_bilinear(pixels, (new_height, new_width), antialias=antialias)


def resize_bilinear(pixels: NDArray[np.uint8], size: tuple[int, int], *, antialias: bool) -> NDArray[np.uint8]:
    """Resize uint8 [H,W,3] to a size (H', W')."""
    if size == pixels.shape[:2]:
        return pixels
    if antialias:
        return np.asarray(Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.BILINEAR))
    return _bilinear(pixels, *size)


def _bilinear(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize without antialiasing, to the bits of `torch.nn.functional.interpolate` on x86 CPUs.

    torch multiplies and adds in one rounding to float32. A product of a float32 and a byte is exact in float64, so an
    addition there and a rounding to float32 is the same.
    """
    top, bottom, down = _taps(pixels.shape[0], height)
    left, right, across = _taps(pixels.shape[1], width)
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    lefts, rights = planes[:, :, left], planes[:, :, right]
    result = np.empty((height, width, len(planes)), np.uint8)
    for start in range(0, height, _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        upper, lower, below = top[rows], bottom[rows], down[rows, None]
        total = (1 - below) * across * rights[:, upper]
        for weight, values in (
            ((1 - below) * (1 - across), lefts[:, upper]),
            (below * (1 - across), lefts[:, lower]),
            (below * across, rights[:, lower]),
        ):
            exact = np.multiply(weight, values, dtype=np.float64)
            exact += total
            total = exact.astype(np.float32)
        result[rows] = np.rint(total, out=total).transpose(1, 2, 0)
    return result


def _taps(source: int, target: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """For each target position: the source positions on either side, and the weight of the second."""
    scale = float(np.float32(source) / np.float32(target))
    places = ((np.arange(target) + 0.5) * scale - 0.5).astype(np.float32).clip(min=0)
    low = np.minimum(places.astype(np.int64), source - 1)
    weight = (places - low.astype(np.float32)).clip(0, 1)
    return low, np.minimum(low + 1, source - 1), weight
