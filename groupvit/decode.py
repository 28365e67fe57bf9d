"""Decodes image files, with a limit on their size. Training, benchmarks, curation and the app all use this decoder.

The result looks as in an image viewer: rotated by its EXIF orientation, transparent parts on white, 8 bits per channel,
and the first frame of an animation. Invalid metadata is ignored (see `image_metadata`).

JPEG files are decoded by libjpeg-turbo (`simplejpeg`: accurate integer DCT, smooth chroma upsampling) at full
resolution: the same pixels as Pillow's, 25 % faster. Pillow decodes all other formats.
"""

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from groupvit.image_metadata import block_orientation, file_orientation, is_jpeg, is_png, without_metadata
from groupvit.late_import import LateImport, MissingPackageError

simplejpeg = LateImport("simplejpeg", "decoding JPEG files")

Pixels = npt.NDArray[np.uint8]

MAX_PIXELS = 2**26
"""Default limit on the number of pixels: 67 megapixels, 201 MB when decoded."""

FORMATS_SHOWN = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""Formats that `decode_upright` reads: browsers show them, and they are few, so untrusted files reach few decoders."""
FORMATS = (*FORMATS_SHOWN, "TIFF")
"""Formats that `decode_image` reads. Few, so that files from the web reach few decoders."""

_DEEP_GRAY = ("I;16", "I;16L", "I;16B", "I;16N")
_MODES = ("1", "L", "P", "RGB", "RGBA", "RGBX", "LA", "PA", "La", "RGBa", "CMYK", "YCbCr", "LAB", "HSV", *_DEEP_GRAY)
_JPEG_MODES = {"Gray": "L", "YCbCr": "RGB", "RGB": "RGB", "CMYK": "CMYK", "YCCK": "CMYK"}


class ImageError(ValueError):
    """An image file cannot be decoded; `reason` is the category of the error."""

    def __init__(self, message: str, reason: Literal["unidentified", "damaged", "mode", "too_many_pixels"]) -> None:
        super().__init__(f"image: {message}")
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Header:
    """Properties of an image file that are known before its pixels are decoded."""

    format: str
    mode: str
    """Pillow's mode of the pixels."""
    width: int
    """As stored, before rotation by `orientation`; so is `height`."""
    height: int
    orientation: int
    """EXIF orientation, 1 to 8; 1 is upright."""
    animated: bool


def read_header(data: bytes, *, formats: tuple[str, ...] = FORMATS) -> Header:
    """Read only the header.

    `ImageError` for another format or a corrupted header; formats other than JPEG also for an absurd size.
    """
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
    choose_divisor: Callable[[int, int], Literal[1, 2, 4, 8]] | None = None,
    upright: bool = True,
    strict: bool = True,
) -> Pixels:
    """Decode an image file to uint8 [H,W,3] RGB.

    Args:
        data: Contents of the file.
        max_pixels: Largest number of pixels. It is checked against the header before any pixel is decoded.
        formats: Accepted formats, by Pillow's names.
        least_side: If given, a much larger JPEG may be decoded at a reduced size, with both sides at least twice this.
            All bytes are decoded nevertheless, and a later resize still has enough pixels.
        choose_divisor: If given, a JPEG is decoded at the fraction of its size that this returns for its upright height
            and width, with sides rounded up. It is not called for other formats and CMYK.
        upright: Whether to rotate the image by its EXIF orientation. False: pixels as stored.
        strict: Whether to reject a JPEG on any warning of the decoder. False: only if it is truncated.

    Raises:
        ImageError: The image is too large, is in another format, is corrupted, or has a mode without an obvious
            conversion to 8 bits. A ValueError with a one-line message.
    """
    if is_jpeg(data):
        height, width, mode = _jpeg_header(data)
        _check_size(height, width, max_pixels)
        if mode != "CMYK" and strict:  # libjpeg-turbo does not convert CMYK to RGB
            orientation = file_orientation(data) if upright else 1
            least = (0, 0) if least_side is None else (2 * least_side, 2 * least_side)
            if choose_divisor is not None:
                divisor = choose_divisor(*((width, height) if orientation >= 5 else (height, width)))
                least = (-(-height // divisor), -(-width // divisor))
            with _explaining(formats, max_pixels):
                pixels = simplejpeg.decode_jpeg(data, min_height=least[0], min_width=least[1])
            return turned(pixels, orientation)
    with _opened(data, formats, max_pixels) as image:
        _check_size(image.height, image.width, max_pixels)
        if image.mode not in _MODES:
            raise ImageError(f"cannot be decoded: its pixels have mode {image.mode}; save it in 8 or 16 bits", "mode")
        pixels = _rgb(image, data)
        return turned(pixels, _orientation(data, image)) if upright else pixels


def decode_upright(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decode a JPEG, PNG, WebP, GIF or BMP file for display. Corrupted files are decoded as far as possible."""
    return decode_image(data, max_pixels=max_pixels, formats=FORMATS_SHOWN, strict=False)


def turned(pixels: Pixels, orientation: int) -> Pixels:
    """Rotate and mirror stored pixels [H,W,…] by their EXIF orientation, 1 to 8."""
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
    """Returns (height, width, Pillow's mode)."""
    with _explaining((), MAX_PIXELS):
        height, width, color_space, _ = simplejpeg.decode_jpeg_header(data)
        return int(height), int(width), _JPEG_MODES[color_space]


def _check_size(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        message = f"{width}×{height} pixels, but max_pixels is {max_pixels}; raise it or shrink the image"
        raise ImageError(f"cannot be decoded: {message}", "too_many_pixels")


@contextlib.contextmanager
def _opened(data: bytes, formats: tuple[str, ...], max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """Open an image with Pillow. All errors in the block become ImageError."""
    with _explaining(formats, max_pixels), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about bombs, since our limit is lower, and about corrupted tags
        with Image.open(io.BytesIO(without_metadata(data)), formats=formats) as image:
            yield image


@contextlib.contextmanager
def _explaining(formats: tuple[str, ...], max_pixels: int) -> Iterator[None]:
    try:
        yield
    except (ImageError, MissingPackageError):
        raise
    except UnidentifiedImageError:  # its message is only a memory address
        *names, last = ("WebP" if name == "WEBP" else name for name in formats)
        message = f"cannot be decoded: it is not a whole {', '.join(names)} or {last} file"
        raise ImageError(message, "unidentified") from None
    except Image.DecompressionBombError:
        message = f"more pixels than max_pixels={max_pixels} by far: shrink it"
        raise ImageError(message, "too_many_pixels") from None
    except Exception as error:  # decoders raise many kinds of errors on corrupted files
        raise ImageError(f"cannot be decoded: {' '.join(str(error).split())}", "damaged") from error


def _orientation(data: bytes, image: Image.Image) -> int:
    if is_jpeg(data) or is_png(data):
        return file_orientation(data)
    if image.format == "TIFF":
        return 1  # Pillow has already rotated the pixels and the size
    exif, xmp = image.info.get("exif"), image.info.get("xmp")
    return block_orientation(exif, xmp)


def _rgb(image: Image.Image, data: bytes) -> Pixels:
    image.load()  # first, since decoding may change the mode
    hidden = image.info.get("transparency")  # the transparent entries of a palette, or the transparent value
    if image.mode in _DEEP_GRAY:
        values = np.asarray(image)
        gray = (values >> 8).astype(np.uint8)
        if hidden is not None:
            gray[values == hidden] = 255
        return np.repeat(gray[..., None], 3, axis=2)
    if hidden is not None and is_png(data):
        image.info["transparency"] = _in_8_bits(hidden, image.mode, bits=data[24])
    if image.has_transparency_data:
        # Fully transparent pixels can have any colour, so they are blended with white.
        colours = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours)
    return np.array(image.convert("RGB"))


def _in_8_bits(value: int | bytes | tuple[int, ...], mode: str, bits: int) -> int | bytes | tuple[int, ...]:
    """Convert a PNG's transparent colour from the file's bit depth to the 8 bits that Pillow decodes to."""
    if isinstance(value, int) and mode == "L" and bits < 8:
        return value * 255 // (2**bits - 1)
    return tuple(part >> 8 for part in value) if isinstance(value, tuple) and bits == 16 else value
