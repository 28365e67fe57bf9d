"""Metadata: only the orientation counts, and nothing in it makes a picture unusable."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from groupvit.decode import decode_image, decode_upright, read_header
from groupvit.image_metadata import file_orientation, without_metadata
from tests.support.image_files import encoded, exif_block, orientation_entry, png_chunk, with_chunk, with_segment

COLOURS = np.array([[[220, 30, 30], [30, 200, 30]], [[30, 30, 220], [230, 220, 30]]], dtype=np.uint8)
UPRIGHT = Image.fromarray(COLOURS.repeat(24, axis=0).repeat(32, axis=1))
"""64 x 48 pixels: red, green; blue, yellow."""
LYING = UPRIGHT.transpose(Image.Transpose.ROTATE_90)
"""As a camera stores it that was turned by a quarter: orientation 6."""
SIX = exif_block([orientation_entry(6)])
LONG_TEXT = b"x" * (2 << 20)
XMP = b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'


def corners(pixels: np.ndarray) -> list[list[int]]:
    """Red, green and blue of the middle of the four quarters, to the next 10: JPEG changes them a little."""
    height, width = pixels.shape[:2]
    places = [(height // 4, width // 4), (height // 4, -width // 4), (-height // 4, width // 4)]
    places.append((-height // 4, -width // 4))
    return [(10 * np.round(pixels[place] / 10)).astype(int).tolist() for place in places]


RIGHT = [[220, 30, 30], [30, 200, 30], [30, 30, 220], [230, 220, 30]]

UNUSABLE = {
    "empty": b"Exif\0\0",
    "no TIFF": b"Exif\0\0XX*\0garbage and more garbage",
    "cut off": b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01",
    "beyond the end": b"Exif\0\0II*\0\xff\xff\xff\x7f\0\0",
    "a text": exif_block([(274, 2, 4, b"six\0")]),
    "nine": exif_block([orientation_entry(9)]),
    "zero": exif_block([orientation_entry(0)]),
    "several": exif_block([(274, 3, 2, struct.pack("<HH", 6, 6))]),
    "wrong types": exif_block([(282, 2, 4, b"72/1"), (306, 3, 1, b"\1\0\0\0"), (270, 2, 2**31 - 1, b"\x20\0\0\0")]),
}
USABLE = {
    "plain": SIX,
    "big-endian": exif_block([orientation_entry(6, ">")], ">"),
    "a long": exif_block([(274, 4, 1, struct.pack("<I", 6))]),
    "headed twice": b"Exif\0\0" + SIX,
    "wrong types beside it": exif_block([(282, 2, 4, b"72/1"), (306, 3, 1, b"\1\0\0\0"), orientation_entry(6)]),
    "zero rational": exif_block([orientation_entry(6), (282, 5, 1, struct.pack("<I", 38))], rest=bytes(8)),
    "pointers to nowhere": exif_block([orientation_entry(6), (34665, 4, 1, struct.pack("<I", 999_999))]),
}


def with_exif(image: Image.Image, kind: str, block: bytes) -> bytes:
    plain = encoded(image, kind, **({"lossless": True} if kind == "WEBP" else {}))
    match kind:
        case "JPEG":
            return with_segment(plain, 0xE1, block)
        case "PNG":
            return with_chunk(plain, b"eXIf", block.removeprefix(b"Exif\0\0"))
    return encoded(image, kind, lossless=True, exif=block)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("block", UNUSABLE.values(), ids=UNUSABLE)
@pytest.mark.filterwarnings("error")
def test_exif_that_cannot_be_used_is_ignored(block: bytes, kind: str) -> None:
    data = with_exif(UPRIGHT, kind, block)
    for decode in (decode_image, decode_upright):
        assert decode(data).shape == (48, 64, 3)
        assert corners(decode(data)) == RIGHT
    assert read_header(data).orientation == 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("block", USABLE.values(), ids=USABLE)
@pytest.mark.filterwarnings("error")
def test_the_orientation_is_read_alone(block: bytes, kind: str) -> None:
    data = with_exif(LYING, kind, block)
    for decode in (decode_image, decode_upright):
        assert decode(data).shape == (48, 64, 3)
        assert corners(decode(data)) == RIGHT
    assert decode_image(data, upright=False).shape == (64, 48, 3)
    header = read_header(data)
    assert (header.width, header.height, header.orientation) == (48, 64, 6)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_orientation_is_that_of_pillow(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(UPRIGHT, kind, exif=exif, **options)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(decode_image(data), expected)


def test_an_orientation_in_xmp_or_in_a_text_of_imagemagick_counts_too() -> None:
    jpeg, png = encoded(LYING, "JPEG", quality=95), encoded(LYING, "PNG")
    hexadecimal = b"\nexif\n      50\n" + SIX.hex().encode()
    for data in (
        with_segment(jpeg, 0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP),
        with_segment(with_segment(jpeg, 0xE1, SIX), 0xE1, b"Exif\0\0nothing"),
        with_chunk(png, b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
        with_chunk(png, b"tEXt", b"Raw profile type exif\0" + hexadecimal),
        with_chunk(png, b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(hexadecimal)),
        with_chunk(png, b"eXIf", SIX[6:], at_the_end=True),
        encoded(LYING, "WEBP", lossless=True, xmp=XMP),
    ):
        assert corners(decode_image(data)) == RIGHT


@pytest.mark.parametrize("at_the_end", [False, True])
@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (b"zTXt", b"comment\0\0" + zlib.compress(LONG_TEXT)),
        (b"iTXt", b"comment\0\1\0\0\0" + zlib.compress(LONG_TEXT)),
        (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(LONG_TEXT)),
        (b"iCCP", b"profile\0\0" + zlib.compress(LONG_TEXT)),
        (b"iCCP", b"profile\0\7unknown"),
        (b"tEXt", b"comment\0" + LONG_TEXT),
        (b"gAMA", b"\1"),
        (b"pHYs", b"\1"),
        (b"sRGB", b""),
    ],
)
def test_chunks_of_a_png_that_are_not_pixels_are_ignored(kind: bytes, content: bytes, at_the_end: bool) -> None:
    limits = (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)
    data = with_chunk(encoded(UPRIGHT, "PNG"), kind, content, at_the_end=at_the_end)
    for decode in (decode_image, decode_upright):
        np.testing.assert_array_equal(decode(data), np.asarray(UPRIGHT))
    assert read_header(data).format == "PNG"
    assert limits == (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY), "others rely on them"


def test_many_texts_and_wrong_checksums_of_texts_are_ignored() -> None:
    data = encoded(UPRIGHT, "PNG")
    data = data[:33] + 70 * png_chunk(b"tEXt", b"comment\0" + LONG_TEXT[: 1 << 20]) + data[33:]
    np.testing.assert_array_equal(decode_image(data), np.asarray(UPRIGHT))
    data = bytearray(with_chunk(encoded(UPRIGHT, "PNG"), b"tEXt", b"comment\0text"))
    data[33 + 8 + 3] ^= 255
    np.testing.assert_array_equal(decode_image(bytes(data)), np.asarray(UPRIGHT))


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
@pytest.mark.parametrize(
    ("marker", "content"),
    [
        (0xE0, b"JFIF\0\1"),
        (0xED, b"Photoshop 3.0\x008BIM\4\4"),
        (0xE2, b"MPF\0II*\0\x08\0\0\0"),
        (0xE2, b"ICC_PROFILE\0\1\1not a profile"),
        (0xEE, b"Adobe"),
        (0xFE, b"comment" * 9000),
    ],
)
def test_segments_of_a_jpeg_that_are_not_pixels_are_ignored(marker: int, content: bytes, mode: str) -> None:
    plain = encoded(UPRIGHT.convert(mode), "JPEG", quality=95)
    data = with_segment(plain, marker, content)
    for decode in (decode_image, decode_upright):
        np.testing.assert_array_equal(decode(data), decode(plain))
    assert corners(decode_image(data)) == RIGHT


def test_metadata_of_files_cut_anywhere_is_no_error() -> None:
    for data in (encoded(UPRIGHT, "PNG"), with_segment(encoded(UPRIGHT, "JPEG"), 0xE1, SIX), b"GIF89a", b""):
        for end in range(0, len(data), 7):
            assert len(without_metadata(data[:end])) <= end
            assert file_orientation(data[:end]) in (1, 6)
