"""Image files as they come from the web: what they are by their header, their pixels upright in RGB, their size brought
to the tier, and a perceptual hash.

Whatever a decoder raises on a damaged file, and it may be of any kind, becomes `UnusableImageError` with a reason.
"""

import io
import warnings
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, UnidentifiedImageError

Pixels = npt.NDArray[np.uint8]  # [H,W,3], RGB

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""What is read: the fewer decoders are open to what the web sends, the better."""
_JPEG = ("JPEG", "MPO")  # Pillow's name for a JPEG followed by more, as phones write it
_ORIENTATION = 274  # EXIF tag
_DEEP_GRAY = ("I;16", "I;16L", "I;16B", "I;16N")
_MODES = ("1", "L", "P", "RGB", "RGBA", "RGBX", "LA", "PA", "La", "RGBa", "CMYK", "YCbCr", "LAB", "HSV", *_DEEP_GRAY)
_FLATNESS = 3.0  # standard deviation, in grey levels of 255, below which a picture shows nothing to tell it by

_COSINES = np.round(4096 * np.cos(np.pi * np.arange(8)[:, None] * (2 * np.arange(32)[None] + 1) / 64)).astype(
    np.int64
)  # [8,32]: the lowest frequencies of a discrete cosine transform, as integers


class UnusableImageError(Exception):
    """`str()` of it is the drop reason."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a file says about itself before any pixel is decoded."""

    format: str
    mode: str
    width: int
    """As stored, before it is put upright."""
    height: int
    orientation: int
    """1 to 8, of EXIF; 1 is upright."""
    animated: bool


def read_header(data: bytes) -> Header:
    """UnusableImageError: image_unidentified, image_too_many_pixels (an absurd header) or image_damaged."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of bombs, for our own limit is stricter, and of damaged tags
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                return Header(
                    format=image.format or "",
                    mode=image.mode,
                    width=image.width,
                    height=image.height,
                    orientation=_orientation(image),
                    animated=image.format not in _JPEG and getattr(image, "n_frames", 1) > 1,
                )
    except Image.DecompressionBombError as error:
        raise UnusableImageError("image_too_many_pixels") from error
    except UnidentifiedImageError as error:
        raise UnusableImageError("image_unidentified") from error
    except Exception as error:
        raise UnusableImageError("image_damaged") from error


def decode(data: bytes, header: Header, *, least_side: int) -> Pixels:
    """The whole image, upright, in RGB. Transparency is laid on white, 16 bits are brought to 8.

    A JPEG much larger than `least_side` may come smaller, at no less than twice that side: every byte is decoded all
    the same, and what shrinks it afterwards has enough to choose from.

    UnusableImageError: image_damaged, for a truncated file or one that a decoder has to guess at, or image_mode.
    """
    if header.mode not in _MODES:
        raise UnusableImageError("image_mode")
    try:
        if header.format in _JPEG and header.mode in ("RGB", "L"):
            pixels = simplejpeg.decode_jpeg(data, min_height=2 * least_side, min_width=2 * least_side)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                    pixels = _to_rgb(image)
    except Exception as error:
        raise UnusableImageError("image_damaged") from error
    return _upright(pixels, header.orientation)


def fits(header: Header, side: int) -> bool:
    """Whether the file can be kept byte for byte in the tier of that short side."""
    small = min(header.width, header.height) <= side
    return header.format in _JPEG and header.mode == "RGB" and header.orientation == 1 and small


def shrink(pixels: Pixels, side: int) -> Pixels:
    """Bring the short side down to `side`, if it is longer; the aspect ratio stays."""
    height, width = pixels.shape[:2]
    short = min(height, width)
    if short <= side:
        return pixels
    size = max(side, round(width * side / short)), max(side, round(height * side / short))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)  # pyright: ignore[reportReturnType]


def encode_jpeg(pixels: Pixels, quality: int) -> bytes:
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=quality, colorsubsampling="420")


def perceptual_hash(pixels: Pixels) -> int | None:
    """64 bits that hardly change when a picture is scaled, encoded again or slightly toned: which of the 8×8 lowest
    frequencies of its 32×32 grey thumbnail are above their median (Zauner 2010). None for a picture that is flat.

    The transform is one of integers: its rounding cannot differ from machine to machine.
    """
    small = cv2.resize(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), (32, 32), interpolation=cv2.INTER_AREA)
    if small.std() < _FLATNESS:
        return None
    frequencies = (_COSINES @ small.astype(np.int64) @ _COSINES.T).reshape(-1)
    return int.from_bytes(np.packbits(frequencies > np.sort(frequencies)[32]).tobytes())


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a damaged tag leaves the picture as good as it is
        return 1
    return orientation if orientation in range(1, 9) else 1


def _to_rgb(image: Image.Image) -> Pixels:
    image.load()  # before the mode is looked at: decoding may change it
    if image.mode in _DEEP_GRAY:
        gray = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        # Pixels under full transparency hold whatever the program that wrote them left there.
        colours = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours)
    return np.asarray(image.convert("RGB"))


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
