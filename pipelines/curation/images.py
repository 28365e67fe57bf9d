"""Image files from the web: reads their headers, shrinks them to the tier, and computes a perceptual hash.
`groupvit.decode` decodes them, as it does everywhere. An image that it refuses is dropped with a reason.
"""

import cv2
import numpy as np
import simplejpeg

from groupvit import decode as image_files
from groupvit.decode import Header, ImageError, Pixels

_FLATNESS = 3.0  # standard deviation, in grey levels of 255; a picture below it is too flat to be recognised

_COSINES = np.round(4096 * np.cos(np.pi * np.arange(8)[:, None] * (2 * np.arange(32)[None] + 1) / 64)).astype(
    np.int64
)  # [8,32]: the lowest frequencies of a discrete cosine transform, as integers


class UnusableImageError(Exception):
    """An image cannot be used. Its message is the drop reason."""


def read_header(data: bytes) -> Header:
    """Reads the header.

    Raises UnusableImageError: image_unidentified, image_too_many_pixels (an absurd header) or image_damaged.
    """
    try:
        return image_files.read_header(data)
    except ImageError as error:
        raise UnusableImageError(f"image_{error.reason}") from error


def decode(data: bytes, header: Header, *, least_side: int) -> Pixels:
    """Decodes the whole image as `decode_image` does everywhere. A large JPEG may be decoded at a smaller size.

    Raises UnusableImageError: image_damaged for a truncated file or one that a decoder has to guess at, or image_mode.
    """
    try:
        return image_files.decode_image(data, max_pixels=header.width * header.height, least_side=least_side)
    except ImageError as error:
        raise UnusableImageError(f"image_{error.reason}") from error


def fits(header: Header, side: int) -> bool:
    """Whether the file can be kept byte for byte in the tier with that short side."""
    small = min(header.width, header.height) <= side
    return header.format == "JPEG" and header.mode == "RGB" and header.orientation == 1 and small


def shrink(pixels: Pixels, side: int) -> Pixels:
    """Shrinks the short side to `side` if it is longer. Keeps the aspect ratio."""
    height, width = pixels.shape[:2]
    short = min(height, width)
    if short <= side:
        return pixels
    size = max(side, round(width * side / short)), max(side, round(height * side / short))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)  # pyright: ignore[reportReturnType]


def encode_jpeg(pixels: Pixels, quality: int) -> bytes:
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=quality, colorsubsampling="420")


def perceptual_hash(pixels: Pixels) -> int | None:
    """Computes 64 bits that hardly change when an image is scaled, encoded again or slightly toned.

    They say which of the 8×8 lowest frequencies of its 32×32 grey thumbnail are above their median (Zauner 2010). None
    for a flat image. The transform uses integers, so that its rounding is the same on every machine.
    """
    small = cv2.resize(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), (32, 32), interpolation=cv2.INTER_AREA)
    if small.std() < _FLATNESS:
        return None
    frequencies = (_COSINES @ small.astype(np.int64) @ _COSINES.T).reshape(-1)
    return int.from_bytes(np.packbits(frequencies > np.sort(frequencies)[32]).tobytes())
