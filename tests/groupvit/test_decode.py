"""Decoding, in bounds and on damaged files."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from groupvit.decode import ImageError, decode_image, decode_upright
from tests.support.image_files import encoded, png_chunk, write_png


def picture(height: int = 61, width: int = 83, mode: str = "RGB") -> Image.Image:
    small = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{"quality": 90}, {"quality": 75, "progressive": True}, {"subsampling": 0}])
def test_jpeg_pixels_equal_those_of_pillow(mode, options):
    data = encoded(picture(mode=mode), "JPEG", **options)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    decoded = decode_image(data)
    assert decoded.dtype == np.uint8 and decoded.shape == (61, 83, 3)
    np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "1"])
def test_png_of_any_mode_becomes_rgb(mode):
    image = picture(mode=mode)
    np.testing.assert_array_equal(decode_image(encoded(image, "PNG")), np.asarray(image.convert("RGB")))


def test_webp_becomes_rgb():
    np.testing.assert_array_equal(decode_image(encoded(picture(), "WEBP", lossless=True)), np.asarray(picture()))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_damaged_files_are_refused(file_format):
    data = encoded(picture(), file_format)
    for damaged in (data[: len(data) // 2], data[:20], data[:-40], b"\0" * len(data), b""):
        with pytest.raises(ValueError, match="image: cannot be decoded"):
            decode_image(damaged)


def test_a_jpeg_with_scrambled_scan_is_refused():
    data = bytearray(encoded(picture(400, 400), "JPEG", quality=95))
    middle = len(data) // 2
    data[middle : middle + 64] = b"\xff\xd9" * 32
    with pytest.raises(ValueError, match="image: cannot be decoded"):
        decode_image(bytes(data))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_the_size_is_checked_before_decoding(file_format, monkeypatch):
    data = encoded(Image.new("RGB", (3000, 2000)), file_format)
    monkeypatch.setattr("groupvit.decode.simplejpeg.decode_jpeg", lambda _: pytest.fail("decoded"))
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ValueError, match="3000×2000 pixels, but max_pixels is 5999999"):
        decode_image(data, max_pixels=5_999_999)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_upright_pictures_are_turned_as_noted(file_format):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    data = encoded(picture(), file_format, exif=exif)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB").transpose(Image.Transpose.ROTATE_270))
    np.testing.assert_array_equal(decode_upright(data), expected)
    np.testing.assert_array_equal(decode_image(data), expected)
    assert decode_image(data, upright=False).shape == (61, 83, 3), "pixels as they lie in the file"


@pytest.mark.parametrize("decode", [decode_image, decode_upright])
def test_pictures_stand_on_white_where_they_are_transparent(decode):
    image = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    image.putpixel((1, 2), (10, 20, 30, 255))
    pixels = decode(encoded(image, "PNG"))
    assert pixels[2, 1].tolist() == [10, 20, 30] and pixels[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("decode", [decode_image, decode_upright])
def test_greys_of_16_bits_are_scaled_to_8(decode):
    values = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    pixels = decode(encoded(Image.fromarray(values), "PNG"))
    np.testing.assert_array_equal(pixels[..., 0], (values >> 8).astype(np.uint8))


GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6  # colour types of PNG
BLACK_AND_RED = png_chunk(b"PLTE", bytes([0, 0, 0, 200, 0, 0]))


@pytest.mark.parametrize(
    ("samples", "bits", "color_type", "extra", "expected"),
    [
        ([[0, 1]], 1, GREY, [], [[0, 0, 0], [255, 255, 255]]),
        ([[0, 3]], 2, GREY, [], [[0, 0, 0], [255, 255, 255]]),
        ([[0, 5]], 4, GREY, [], [[0, 0, 0], [85, 85, 85]]),
        ([[4, 5]], 4, GREY, [png_chunk(b"tRNS", b"\0\4")], [[255, 255, 255], [85, 85, 85]]),
        ([[0, 7]], 8, GREY, [png_chunk(b"tRNS", b"\0\0")], [[255, 255, 255], [7, 7, 7]]),
        ([[0x1234, 0x1235]], 16, GREY, [png_chunk(b"tRNS", b"\x12\x34")], [[255, 255, 255], [18, 18, 18]]),
        ([[[1, 2, 3], [4, 5, 6]]], 8, RGB, [png_chunk(b"tRNS", b"\0\1\0\2\0\3")], [[255, 255, 255], [4, 5, 6]]),
        (
            [[[256, 512, 768], [1, 2, 259]]],
            16,
            RGB,
            [png_chunk(b"tRNS", b"\1\0\2\0\3\0")],
            [[255, 255, 255], [0, 0, 1]],
        ),
        ([[0, 1]], 1, PALETTE, [BLACK_AND_RED, png_chunk(b"tRNS", b"\xff\0")], [[0, 0, 0], [255, 255, 255]]),
        ([[0, 1]], 8, PALETTE, [BLACK_AND_RED, png_chunk(b"tRNS", b"\xff\x80")], [[0, 0, 0], [227, 127, 127]]),
        ([[[9, 0], [9, 255]]], 8, GREY_ALPHA, [], [[255, 255, 255], [9, 9, 9]]),
        ([[[9 << 8, 0], [9 << 8, 65535]]], 16, GREY_ALPHA, [], [[255, 255, 255], [9, 9, 9]]),
        ([[[256, 512, 768, 0], [256, 512, 768, 65535]]], 16, RGBA, [], [[255, 255, 255], [1, 2, 3]]),
    ],
)
def test_png_samples_of_any_depth_become_8_bits_on_white(samples, bits, color_type, extra, expected):
    data = write_png(np.array(samples), bits=bits, color_type=color_type, extra=extra)
    for decode in (decode_image, decode_upright):
        assert decode(data).tolist() == [expected]


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_modes_without_obvious_pixels_are_refused(kind):
    with pytest.raises(ImageError, match=r"its pixels have mode [FI]; save it in 8 or 16 bits") as caught:
        decode_image(encoded(Image.fromarray(np.ones((9, 9), kind)), "TIFF"))
    assert caught.value.reason == "mode"


@pytest.mark.parametrize("file_format", ["AVIF", "JPEG2000", "PPM", "PSD", "EPS", "ICO"])
def test_other_formats_are_refused_by_name_of_what_is_read(file_format):
    data = encoded(picture(), file_format) if file_format != "PSD" else b"8BPS\0\1" + bytes(100)
    with pytest.raises(ImageError, match="it is not a whole JPEG, PNG, WebP, GIF, BMP or TIFF file") as caught:
        decode_image(data)
    assert caught.value.reason == "unidentified"


@pytest.mark.parametrize("size", [(1, 400), (400, 1), (20_000, 3), (1, 1)])
@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_strips_are_decoded(size, file_format):
    assert decode_image(encoded(Image.new("RGB", size, "red"), file_format)).shape == (size[1], size[0], 3)


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_several_frames_the_first_is_decoded(file_format):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    pixels = decode_image(encoded(frames[0], file_format, save_all=True, append_images=frames[1:]))
    assert pixels.shape == (6, 8, 3) and pixels[3, 3, 0] > 240 and pixels[3, 3, 2] < 15


def test_a_large_jpeg_may_come_smaller_and_keeps_its_orientation():
    exif = Image.Exif()
    exif[274] = 6
    data = encoded(picture(800, 1200), "JPEG", exif=exif)
    pixels = decode_image(data, least_side=100)
    assert 200 <= pixels.shape[1] < 800 and pixels.shape[0] > pixels.shape[1]


@pytest.mark.parametrize(("orientation", "upright"), [(1, (301, 203)), (3, (301, 203)), (6, (203, 301))])
def test_a_jpeg_is_decoded_at_a_fraction_of_its_size(orientation, upright):
    exif = Image.Exif()
    exif[274] = orientation
    data = encoded(picture(301, 203), "JPEG", exif=exif)
    whole = decode_image(data, upright=False)[:296, :200].astype(float)
    sizes = []

    def always(divisor: Any):
        return lambda height, width: sizes.append((height, width)) or divisor

    for divisor in (2, 4, 8):
        pixels = decode_image(data, choose_divisor=always(divisor), upright=False)
        means = whole.reshape(296 // divisor, divisor, 200 // divisor, divisor, 3).mean((1, 3))
        assert np.abs(pixels[: 296 // divisor, : 200 // divisor] - means).mean() < 2
        turned = decode_image(data, choose_divisor=always(divisor))
        assert turned.shape == (*(-(-side // divisor) for side in upright), 3)
    assert sizes == [(301, 203), upright] * 3


@pytest.mark.parametrize(("mode", "file_format"), [("CMYK", "JPEG"), ("RGB", "PNG")])
def test_other_files_are_decoded_whole(mode, file_format):
    data = encoded(picture(301, 203, mode), file_format)
    pixels = decode_image(data, choose_divisor=lambda *_: pytest.fail("called"))
    np.testing.assert_array_equal(pixels, decode_image(data))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (encoded(Image.new("1", (20_000, 20_000)), "PNG"), "more pixels than max_pixels=67108864 by far"),
        (encoded(Image.new("1", (10_000, 10_000)), "PNG"), "10000×10000 pixels, but max_pixels is 67108864"),
        (encoded(picture(), "JPEG")[:600], "cannot be decoded"),
        (encoded(picture(), "TIFF"), "it is not a whole JPEG, PNG, WebP, GIF or BMP file"),
        (b"words", "it is not a whole JPEG"),
        (b"", "it is not a whole JPEG"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_upright_pictures_that_are_refused(data, message):
    with pytest.raises(ValueError, match=message) as caught:
        decode_upright(data)
    assert "\n" not in str(caught.value)
