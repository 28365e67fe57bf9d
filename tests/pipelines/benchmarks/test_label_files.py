"""Label files of every kind: the samples as they are stored, or a line that says what is wrong."""

import numpy as np
import pytest
from PIL import Image

from pipelines.benchmarks.label_files import decode_labels
from tests.support.image_files import encoded, png_chunk, with_chunk, write_png

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6  # colour types of PNG
LABELS = np.random.default_rng(0).integers(0, 2**16, (7, 13))
"""13 samples do not fill the last byte of a row."""


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_grey_samples_come_as_they_are_stored(bits: int) -> None:
    labels = LABELS % 2**bits
    np.testing.assert_array_equal(decode_labels(write_png(labels, bits=bits)), labels)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("transparency", [[], [png_chunk(b"tRNS", b"\0\x80")]])
def test_of_a_palette_the_indexes_come(bits: int, transparency: list[bytes]) -> None:
    labels = LABELS % 2**bits
    colours = png_chunk(b"PLTE", bytes(range(3)) * 2**bits)
    data = write_png(labels, bits=bits, color_type=PALETTE, extra=[colours, *transparency])
    np.testing.assert_array_equal(decode_labels(data), labels)


def test_files_that_pillow_writes_come_as_they_were() -> None:
    for kind in (np.uint8, np.uint16):
        labels = (LABELS % 151).astype(kind)
        np.testing.assert_array_equal(decode_labels(encoded(Image.fromarray(labels), "PNG")), labels)
    flags = LABELS % 2 == 1
    np.testing.assert_array_equal(decode_labels(encoded(Image.fromarray(flags), "PNG")), flags)


def test_metadata_and_an_opaque_alpha_channel_change_nothing() -> None:
    labels = LABELS % 256
    with_text = with_chunk(write_png(labels, bits=8), b"tEXt", b"comment\0" + bytes(2 << 20))
    opaque = write_png(np.stack([labels, np.full_like(labels, 255)], axis=-1), bits=8, color_type=GREY_ALPHA)
    for data in (with_text, opaque):
        np.testing.assert_array_equal(decode_labels(data), labels)


def channels(*values: int) -> np.ndarray:
    return np.array(values) * np.ones((4, 4, 1), int)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (write_png(channels(7, 0), bits=8, color_type=GREY_ALPHA), "is partly transparent"),
        (write_png(channels(7, 65535), bits=16, color_type=GREY_ALPHA), "mode RGBA, one channel is expected"),
        (write_png(channels(7, 7, 7), bits=8, color_type=RGB), "mode RGB, one channel is expected"),
        (write_png(channels(7, 7, 7, 255), bits=8, color_type=RGBA), "mode RGBA, one channel is expected"),
        (encoded(Image.new("L", (8, 8)), "JPEG"), "is a JPEG file: a PNG of labels is expected"),
        (encoded(Image.new("L", (8, 8)), "TIFF"), "is a TIFF file: a PNG of labels is expected"),
        (b"", "cannot be decoded as an image"),
        (write_png(LABELS % 256, bits=8)[:-60], "cannot be decoded as an image"),
    ],
)
def test_what_holds_no_labels_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        decode_labels(data)
    assert "\n" not in str(caught.value)
