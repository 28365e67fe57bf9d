"""Image files to pixels, within bounds.

JPEG goes through libjpeg-turbo (`simplejpeg`: accurate integer DCT, smooth chroma upsampling), at full resolution: the
same pixels as Pillow gives, a quarter faster. Everything else goes through Pillow. Orientation tags are not applied:
`decode_upright` does that, for pictures that people look at.
"""

import io
import warnings

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 2**26
"""Largest image that is decoded by default: 67 megapixels, 201 MB of pixels."""

FORMATS_SHOWN = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""What `decode_upright` reads: formats that a browser shows too, and few decoders for strangers' files to reach."""


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
    except UnidentifiedImageError:  # whose message is an address in memory
        raise ValueError("image: cannot be decoded: it is no image file of a known format") from None
    except Exception as error:  # decoders raise errors of every kind on damaged files
        raise ValueError(f"image: cannot be decoded: {error}") from error


def decode_upright(data: bytes, *, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """Decode a picture as a person sees it to uint8 [H,W,3] RGB: turned as its camera noted, on white where it is
    transparent, the first frame of several.

    The size is read off the header before any pixel is decoded. `ValueError`, in one line, if it exceeds `max_pixels`,
    and for what is no whole JPEG, PNG, WebP, GIF or BMP file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the bound here is the lower one
            opened = Image.open(io.BytesIO(data), formats=FORMATS_SHOWN)
        with opened as image:
            _check_size(image.height, image.width, max_pixels)
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I;16"):  # 16 bits of grey, which Pillow would cut off at 255
                upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
            if upright.has_transparency_data:
                upright = upright.convert("RGBA")
                upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
            return np.array(upright.convert("RGB"))
    except UnidentifiedImageError:
        raise ValueError("image: cannot be decoded: it is no whole JPEG, PNG, WebP, GIF or BMP file") from None
    except Image.DecompressionBombError:
        raise ValueError(f"image: more pixels than max_pixels={max_pixels} by far: shrink it") from None
    except Exception as error:  # decoders raise errors of every kind on damaged files
        raise ValueError(f"image: cannot be decoded: {error}") from error


def _check_size(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise ValueError(f"{width}×{height} pixels, but max_pixels is {max_pixels}; raise it or shrink the image")
