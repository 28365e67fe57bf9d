"""Image files to pixels, within bounds.

JPEG goes through libjpeg-turbo (`simplejpeg`: accurate integer DCT, smooth chroma upsampling), at full resolution: the
same pixels as Pillow gives, a quarter faster. Everything else goes through Pillow. Orientation tags are not applied.
"""

import io

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

MAX_PIXELS = 2**26
"""Largest image that is decoded by default: 67 megapixels, 201 MB of pixels."""


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """Decode a JPEG, PNG, WebP … file to uint8 [H,W,3] RGB; transparency is dropped.

    The size is read off the header before any pixel is decoded. `ValueError` if it exceeds `max_pixels`, and if the
    bytes are no image or a damaged one: a truncated file, or a JPEG in which the decoder had to guess.
    """
    try:
        if simplejpeg.is_jpeg(data):
            height, width, color_space, _ = simplejpeg.decode_jpeg_header(data)
            _check_size(int(height), int(width), max_pixels)
            if color_space not in ("CMYK", "YCCK"):  # libjpeg-turbo does not turn these into RGB
                return simplejpeg.decode_jpeg(data)
        with Image.open(io.BytesIO(data)) as image:
            _check_size(image.height, image.width, max_pixels)
            return np.array(image.convert("RGB"))
    except Exception as error:  # decoders raise errors of every kind on damaged files
        raise ValueError(f"image: cannot be decoded: {error}") from error


def _check_size(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise ValueError(f"{width}×{height} pixels, but max_pixels is {max_pixels}; raise it or shrink the image")
