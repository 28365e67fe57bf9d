"""Image files to pixels, within bounds: the one decoder for training, benchmarks, curation and pictures of users.

A picture comes as a person sees it: turned as its camera noted, on white where it is transparent, in 8 bits, the first
frame of several. Metadata that cannot be used is ignored (see `image_metadata`).

JPEG goes through libjpeg-turbo (`simplejpeg`: accurate integer DCT, smooth chroma upsampling), at full resolution: the
same pixels as Pillow gives, a quarter faster. Everything else goes through Pillow.
"""

import contextlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, UnidentifiedImageError

from groupvit.image_metadata import block_orientation, file_orientation, is_jpeg, is_png, without_metadata

Pixels = npt.NDArray[np.uint8]

MAX_PIXELS = 2**26
"""Largest image that is decoded by default: 67 megapixels, 201 MB of pixels."""

FORMATS_SHOWN = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""What `decode_upright` reads: formats that a browser shows too, and few decoders for strangers' files to reach."""
FORMATS = (*FORMATS_SHOWN, "TIFF")
"""What `decode_image` reads: the fewer decoders are open to what the web sends, the better."""

_DEEP_GRAY = ("I;16", "I;16L", "I;16B", "I;16N")
_MODES = ("1", "L", "P", "RGB", "RGBA", "RGBX", "LA", "PA", "La", "RGBa", "CMYK", "YCbCr", "LAB", "HSV", *_DEEP_GRAY)
_JPEG_MODES = {"Gray": "L", "YCbCr": "RGB", "RGB": "RGB", "CMYK": "CMYK", "YCCK": "CMYK"}


class ImageError(ValueError):
    """An image file that cannot be decoded; `reason` says it in a word."""

    def __init__(self, message: str, reason: Literal["unidentified", "damaged", "mode", "too_many_pixels"]) -> None:
        super().__init__(f"image: {message}")
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a file says about itself before any pixel is decoded."""

    format: str
    mode: str
    """Pillow's name for what the pixels are."""
    width: int
    """As stored, before it is put upright."""
    height: int
    orientation: int
    """1 to 8, of EXIF; 1 is upright."""
    animated: bool


def read_header(data: bytes, *, formats: tuple[str, ...] = FORMATS) -> Header:
    """Reads no pixels. `ImageError` for what is no image file of these formats, a damaged header or an absurd size."""
    if is_jpeg(data):
        height, width, mode = _jpeg_header(data)
        orientation = file_orientation(data)
        return Header(format="JPEG", mode=mode, width=width, height=height, orientation=orientation, animated=False)
    with _opened(data, formats) as image:
        return Header(
            format=image.format or "",
            mode=image.mode,
            width=image.width,
            height=image.height,
            orientation=_orientation(data, image),
            animated=getattr(image, "n_frames", 1) > 1,
        )


def decode_image(
    data: bytes,
    *,
    max_pixels: int = MAX_PIXELS,
    formats: tuple[str, ...] = FORMATS,
    least_side: int | None = None,
    upright: bool = True,
    strict: bool = True,
) -> Pixels:
    """Decode an image file to uint8 [H,W,3] RGB.

    Args:
        data: Content of the file.
        max_pixels: Largest image that is decoded. The size is read off the header before any pixel is decoded.
        formats: Formats that are read, by Pillow's names.
        least_side: A JPEG much larger than this may come smaller, at no less than twice this side: every byte is
            decoded all the same, and what shrinks it afterwards has enough to choose from.
        upright: Whether to turn the picture as its camera noted; False: pixels as they lie in the file.
        strict: Whether a JPEG in which the decoder has to guess is refused; False: only if it is truncated.

    Raises:
        ImageError: The image is too large, or the bytes are no image, a damaged one, or one of a mode that has no
            obvious 8-bit pixels. A ValueError of one line.
    """
    if is_jpeg(data):
        height, width, mode = _jpeg_header(data)
        _check_size(height, width, max_pixels)
        if mode != "CMYK" and strict:  # libjpeg-turbo does not turn CMYK into RGB
            with _explaining(formats, max_pixels):
                if least_side is None:
                    pixels = simplejpeg.decode_jpeg(data)
                else:
                    pixels = simplejpeg.decode_jpeg(data, min_height=2 * least_side, min_width=2 * least_side)
            return turned(pixels, file_orientation(data)) if upright else pixels
    with _opened(data, formats, max_pixels) as image:
        _check_size(image.height, image.width, max_pixels)
        if image.mode not in _MODES:
            raise ImageError(f"cannot be decoded: its pixels have mode {image.mode}; save it in 8 or 16 bits", "mode")
        pixels = _rgb(image, data)
        return turned(pixels, _orientation(data, image)) if upright else pixels


def decode_upright(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Pixels:
    """`decode_image` for a picture that somebody wants to see: a JPEG, PNG, WebP, GIF or BMP file, damaged ones too as
    far as they are whole."""
    return decode_image(data, max_pixels=max_pixels, formats=FORMATS_SHOWN, strict=False)


def turned(pixels: Pixels, orientation: int) -> Pixels:
    """Pixels [H,W,…] as stored, put upright by an orientation of EXIF, 1 to 8."""
    if orientation == 1:
        return pixels
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _jpeg_header(data: bytes) -> tuple[int, int, str]:
    """(height, width, Pillow's mode)."""
    with _explaining((), MAX_PIXELS):
        height, width, color_space, _ = simplejpeg.decode_jpeg_header(data)
        return int(height), int(width), _JPEG_MODES[color_space]


def _check_size(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        message = f"{width}×{height} pixels, but max_pixels is {max_pixels}; raise it or shrink the image"
        raise ImageError(f"cannot be decoded: {message}", "too_many_pixels")


@contextlib.contextmanager
def _opened(data: bytes, formats: tuple[str, ...], max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """Pillow's image, for the block. ImageError for all that goes wrong with it."""
    with _explaining(formats, max_pixels), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of bombs, since the bounds here are the lower ones, and of damaged tags
        with Image.open(io.BytesIO(without_metadata(data)), formats=formats) as image:
            yield image


@contextlib.contextmanager
def _explaining(formats: tuple[str, ...], max_pixels: int) -> Iterator[None]:
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError:  # whose message is an address in memory
        *names, last = ("WebP" if name == "WEBP" else name for name in formats)
        message = f"cannot be decoded: it is no whole {', '.join(names)} or {last} file"
        raise ImageError(message, "unidentified") from None
    except Image.DecompressionBombError:
        message = f"more pixels than max_pixels={max_pixels} by far: shrink it"
        raise ImageError(message, "too_many_pixels") from None
    except Exception as error:  # decoders raise errors of every kind on damaged files
        raise ImageError(f"cannot be decoded: {' '.join(str(error).split())}", "damaged") from error


def _orientation(data: bytes, image: Image.Image) -> int:
    if is_jpeg(data) or is_png(data):
        return file_orientation(data)
    if image.format == "TIFF":
        return 1  # Pillow has turned it, in its size too
    exif, xmp = image.info.get("exif"), image.info.get("xmp")
    return block_orientation(exif, xmp)


def _rgb(image: Image.Image, data: bytes) -> Pixels:
    image.load()  # before the mode is looked at: decoding may change it
    hidden = image.info.get("transparency")  # a palette's transparent entries, or the one value that is transparent
    if image.mode in _DEEP_GRAY:
        values = np.asarray(image)
        gray = (values >> 8).astype(np.uint8)
        if hidden is not None:
            gray[values == hidden] = 255
        return np.repeat(gray[..., None], 3, axis=2)
    if hidden is not None and is_png(data):
        image.info["transparency"] = _in_8_bits(hidden, image.mode, bits=data[24])
    if image.has_transparency_data:
        # Pixels under full transparency hold whatever the program that wrote them left there.
        colours = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours)
    return np.array(image.convert("RGB"))


def _in_8_bits(value: int | bytes | tuple[int, ...], mode: str, bits: int) -> int | bytes | tuple[int, ...]:
    """A PNG's transparent colour, which the file gives as it stores its samples, as Pillow decodes them."""
    if isinstance(value, int) and mode == "L" and bits < 8:
        return value * 255 // (2**bits - 1)
    return tuple(part >> 8 for part in value) if isinstance(value, tuple) and bits == 16 else value
