import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from pipelines.curation.images import (
    UnusableImageError,
    decode,
    encode_jpeg,
    fits,
    perceptual_hash,
    read_header,
    shrink,
)
from tests.support.image_files import encoded, png_that_promises
from tests.support.raw_shards import picture


def hash_of(image):
    found = perceptual_hash(np.asarray(image))
    assert found is not None
    return found


def pixels_of(data, side=256):
    return decode(data, read_header(data), least_side=side)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_puts_images_upright(orientation, kind):
    exif = Image.Exif()
    exif[274] = orientation
    data = encoded(picture(0), kind, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert np.array_equal(pixels_of(data), expected)
    assert fits(read_header(data), 256) == (kind == "JPEG" and orientation == 1)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("RGB", "PNG"),
        ("P", "PNG"),
        ("P", "GIF"),
        ("L", "JPEG"),
        ("L", "PNG"),
        ("1", "PNG"),
        ("CMYK", "JPEG"),
        ("RGB", "WEBP"),
        ("RGB", "BMP"),
        ("CMYK", "TIFF"),
    ],
)
def test_turns_every_mode_into_rgb(mode, kind):
    data = encoded(picture(0).convert(mode), kind, **({"lossless": True} if kind == "WEBP" else {}))
    pixels = pixels_of(data)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert pixels.dtype == np.uint8 and pixels.shape == (80, 96, 3)
    assert np.array_equal(pixels, expected)
    assert not fits(read_header(data), 256)


def test_brings_16_bits_to_8():
    deep = Image.fromarray(np.linspace(0, 65535, 80 * 96).reshape(80, 96).astype(np.uint16))
    pixels = pixels_of(encoded(deep, "PNG"))
    assert pixels.min() == 0 and pixels.max() == 255 and 126 < pixels.mean() < 129


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_lays_transparency_on_white(mode):
    image = Image.new("RGBA", (40, 40), (200, 0, 0, 0))  # red that nobody sees
    image.paste((0, 0, 0, 255), (0, 0, 20, 40))
    if mode == "P":
        image = image.quantize(8)
    pixels = pixels_of(encoded(image.convert(mode), "PNG"))
    assert pixels[:, :20].max() == 0 and pixels[:, 20:].min() == 255


def test_drops_modes_that_have_no_obvious_pixels():
    data = encoded(Image.fromarray(np.ones((40, 40), dtype=np.float32)), "TIFF")
    with pytest.raises(UnusableImageError, match="image_mode"):
        pixels_of(data)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_sees_animation_and_single_frames(kind):
    frames = [picture(seed) for seed in range(3)]
    moving = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=100)
    assert read_header(moving).animated and not read_header(encoded(frames[0], kind)).animated


def test_takes_the_first_picture_of_what_phones_write():
    data = encoded(picture(1), "MPO", save_all=True, append_images=[picture(2)], quality=90)
    header = read_header(data)
    assert header.format == "JPEG" and not header.animated and fits(header, 256)
    assert np.array_equal(pixels_of(data), np.asarray(Image.open(io.BytesIO(encoded(picture(1), quality=90)))))


def test_reads_the_size_of_a_bomb_without_decoding_it():
    assert read_header(png_that_promises(10_000, 9_000)).width == 10_000
    with pytest.raises(UnusableImageError, match="image_too_many_pixels"):
        read_header(png_that_promises(60_000, 60_000))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_refuses_truncated_files(kind):
    data = encoded(picture(0), kind)
    with pytest.raises(UnusableImageError, match="image_damaged"):
        pixels_of(data[: len(data) * 2 // 3])


def test_refuses_what_is_no_image():
    for data in (b"<html>not found</html>", b"\0" * 100, b"%PDF-1.4"):
        with pytest.raises(UnusableImageError, match="image_unidentified"):
            read_header(data)


def test_shrinks_the_short_side_and_nothing_else():
    for size, expected in {
        (1000, 500): (512, 256),
        (500, 1000): (256, 512),
        (300, 257): (299, 256),
        (90, 80): (90, 80),
    }.items():
        height, width = shrink(np.zeros((size[1], size[0], 3), dtype=np.uint8), 256).shape[:2]
        assert (width, height) == expected


def test_a_large_jpeg_comes_smaller_but_no_smaller_than_twice_the_tier():
    data = encoded(picture(0, 2400, 1600))
    pixels = pixels_of(data, side=128)
    assert 256 <= min(pixels.shape[:2]) < 1600
    assert np.abs(shrink(pixels, 128).astype(int) - shrink(pixels_of(data, side=1600), 128)).mean() < 1
    with pytest.raises(UnusableImageError, match="image_damaged"):
        pixels_of(data[:-2000], side=128)


def test_hashes_are_alike_for_one_picture_and_apart_for_two():
    hashes = [hash_of(picture(seed)) for seed in range(60)]
    distances = [(one ^ other).bit_count() for i, one in enumerate(hashes) for other in hashes[:i]]
    assert min(distances) > 8
    for seed in range(20):
        changed = [encoded(picture(seed), quality=40), encoded(picture(seed).resize((60, 50)))]
        changed.append(encoded(picture(seed).point([min(255, round(value * 1.05)) for value in range(256)] * 3)))
        for data in changed:
            assert (hash_of(pixels_of(data)) ^ hashes[seed]).bit_count() <= 4


def test_flat_pictures_have_no_hash():
    assert perceptual_hash(np.full((50, 50, 3), 250, dtype=np.uint8)) is None


def test_encoding_keeps_the_picture():
    pixels = np.asarray(picture(0))
    assert np.abs(pixels_of(encode_jpeg(pixels, 90)).astype(int) - pixels).mean() < 6
