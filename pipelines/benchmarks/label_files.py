"""Reads label files: PNGs whose stored samples are the labels of the pixels."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from groupvit.decode import MAX_PIXELS
from groupvit.image_metadata import is_png, without_metadata

_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")


def decode_labels(content: bytes) -> NDArray[Any]:
    """Decodes the samples [H, W], uint8 or uint16, of a grey PNG of 1 to 16 bits, or the indices of a PNG with a
    palette.

    Raises ValueError, in one line, for anything else: other formats, colours, transparency.
    """
    try:
        return _decoded(content)
    except UnidentifiedImageError:  # its message contains a memory address
        raise ValueError("cannot be decoded as an image: it is not an image file of a known format") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow raises SyntaxError for invalid PNGs
        raise ValueError(f"cannot be decoded as an image ({error})") from error


def _decoded(content: bytes) -> NDArray[Any]:
    with Image.open(io.BytesIO(without_metadata(content))) as file:
        if not is_png(content):  # JPEG and lossy WebP change values, other formats store grey differently
            raise ValueError(f"is a {file.format} file: a PNG of labels is expected")
        if file.width * file.height > MAX_PIXELS:
            raise ValueError(f"has {file.width}×{file.height} pixels, more than {MAX_PIXELS:,}: no label file")
        bits = content[24]
        file.load()
        samples = np.array(file)
        if file.mode == "LA" and bits == 8:
            if (samples[..., 1] < 255).any():
                raise ValueError("is partly transparent: save it without an alpha channel")
            return samples[..., 0]
        if file.mode in _SIXTEEN_BITS:
            return samples.astype(np.uint16)
        if file.mode not in ("1", "L", "P"):
            raise ValueError(f"is an image of mode {file.mode}, one channel is expected: the labels, not their colours")
        # Pillow scales greys of less than 8 bits to 0 to 255: it multiplies 1, 2 and 4 bits by 255, 85 and 17.
        samples = samples.astype(np.uint8) * (255 if file.mode == "1" else 1)
        return samples if file.mode == "P" else samples // (255 // (2**bits - 1))
