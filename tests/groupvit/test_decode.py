"""Decoding, in bounds and on damaged files."""

import io

import numpy as np
import pytest
from PIL import Image

from groupvit.decode import decode_image, decode_upright


def encode(image: Image.Image, file_format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def picture(height: int = 61, width: int = 83, mode: str = "RGB") -> Image.Image:
    small = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{"quality": 90}, {"quality": 75, "progressive": True}, {"subsampling": 0}])
def test_jpeg_pixels_equal_those_of_pillow(mode, options):
    data = encode(picture(mode=mode), "JPEG", **options)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    decoded = decode_image(data)
    assert decoded.dtype == np.uint8 and decoded.shape == (61, 83, 3)
    np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "1"])
def test_png_of_any_mode_becomes_rgb(mode):
    image = picture(mode=mode)
    np.testing.assert_array_equal(decode_image(encode(image, "PNG")), np.asarray(image.convert("RGB")))


def test_webp_becomes_rgb():
    np.testing.assert_array_equal(decode_image(encode(picture(), "WEBP", lossless=True)), np.asarray(picture()))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_damaged_files_are_refused(file_format):
    data = encode(picture(), file_format)
    for damaged in (data[: len(data) // 2], data[:20], data[:-40], b"\0" * len(data), b""):
        with pytest.raises(ValueError, match="image: cannot be decoded"):
            decode_image(damaged)


def test_a_jpeg_with_scrambled_scan_is_refused():
    data = bytearray(encode(picture(400, 400), "JPEG", quality=95))
    middle = len(data) // 2
    data[middle : middle + 64] = b"\xff\xd9" * 32
    with pytest.raises(ValueError, match="image: cannot be decoded"):
        decode_image(bytes(data))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_the_size_is_checked_before_decoding(file_format, monkeypatch):
    data = encode(Image.new("RGB", (3000, 2000)), file_format)
    monkeypatch.setattr("groupvit.decode.simplejpeg.decode_jpeg", lambda _: pytest.fail("decoded"))
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ValueError, match="3000×2000 pixels, but max_pixels is 5999999"):
        decode_image(data, max_pixels=5_999_999)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_upright_pictures_are_turned_as_noted(file_format):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    data = encode(picture(), file_format, exif=exif)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB").transpose(Image.Transpose.ROTATE_270))
    np.testing.assert_array_equal(decode_upright(data), expected)
    assert decode_image(data).shape == (61, 83, 3), "training takes pixels as they lie in the file"


def test_upright_pictures_stand_on_white_where_they_are_transparent():
    image = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    image.putpixel((1, 2), (10, 20, 30, 255))
    pixels = decode_upright(encode(image, "PNG"))
    assert pixels[2, 1].tolist() == [10, 20, 30] and pixels[0, 0].tolist() == [255, 255, 255]


def test_upright_pictures_of_16_bits_keep_their_greys():
    values = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    pixels = decode_upright(encode(Image.fromarray(values), "PNG"))
    np.testing.assert_array_equal(pixels[..., 0], (values >> 8).astype(np.uint8))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (encode(Image.new("1", (20_000, 20_000)), "PNG"), "more pixels than max_pixels=67108864 by far"),
        (encode(Image.new("1", (10_000, 10_000)), "PNG"), "10000×10000 pixels, but max_pixels is 67108864"),
        (encode(picture(), "JPEG")[:600], "cannot be decoded"),
        (encode(picture(), "TIFF"), "it is no whole JPEG, PNG, WebP, GIF or BMP file"),
        (b"words", "it is no whole JPEG"),
        (b"", "it is no whole JPEG"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_upright_pictures_that_are_refused(data, message):
    with pytest.raises(ValueError, match=message) as caught:
        decode_upright(data)
    assert "\n" not in str(caught.value)
