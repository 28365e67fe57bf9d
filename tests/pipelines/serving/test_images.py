"""One decoder: a file is the same picture for `segment`, curation, benchmarks and training from raw shards."""

import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from groupvit.decode import Pixels, decode_image
from pipelines.benchmarks.imagenet import open_imagenet
from pipelines.curation.images import decode, read_header
from pipelines.serving.images import read_picture
from tests.support.image_files import encoded, exif_block, orientation_entry, with_chunk, with_segment

UPRIGHT = Image.fromarray(np.arange(48, dtype=np.uint8).repeat(3 * 40).reshape(48, 40, 3) * 5)
LYING = UPRIGHT.transpose(Image.Transpose.ROTATE_90)
GREYS = np.linspace(0, 65535, 48 * 40).astype(np.uint16).reshape(48, 40)
HIDDEN = Image.fromarray(np.dstack([np.asarray(UPRIGHT), np.zeros((48, 40), np.uint8)]))
SIX_AMONG_WRONG_TYPES = exif_block([(282, 2, 4, b"72/1"), (306, 3, 1, b"\1\0\0\0"), orientation_entry(6)])


@pytest.mark.parametrize(
    ("data", "pixels"),
    [
        (with_chunk(encoded(LYING, "PNG"), b"eXIf", SIX_AMONG_WRONG_TYPES[6:]), np.asarray(UPRIGHT)),
        (with_chunk(encoded(UPRIGHT, "PNG"), b"eXIf", b"no TIFF at all"), np.asarray(UPRIGHT)),
        (with_chunk(encoded(UPRIGHT, "PNG"), b"zTXt", b"x\0\0" + zlib.compress(bytes(2 << 20))), np.asarray(UPRIGHT)),
        (encoded(Image.fromarray(GREYS), "PNG"), np.stack([GREYS >> 8] * 3, axis=-1)),
        (encoded(HIDDEN, "PNG"), np.full((48, 40, 3), 255)),
        (with_segment(encoded(LYING, "JPEG", quality=100, subsampling=0), 0xE1, SIX_AMONG_WRONG_TYPES), None),
    ],
    ids=["turned", "damaged EXIF", "long text", "16 bits", "transparent", "a turned JPEG"],
)
def test_everyone_sees_the_same_picture(data: bytes, pixels: Pixels | None, tmp_path: Path) -> None:
    file = tmp_path / "n01440764/picture.jpg"
    file.parent.mkdir()
    file.write_bytes(data)
    dataset = open_imagenet(str(tmp_path))
    [labelled] = [image for block in dataset.blocks() for image in dataset.read(block)]
    seen = [
        decode_image(data),
        read_picture(str(file)),
        decode(data, read_header(data), least_side=256),
        labelled.image,
    ]
    for one in seen:
        assert one.shape == (48, 40, 3)
        np.testing.assert_array_equal(one, seen[0])
    if pixels is None:
        assert np.abs(seen[0].astype(int) - np.asarray(UPRIGHT)).max() <= 3, "JPEG rounds"
    else:
        np.testing.assert_array_equal(seen[0], pixels)
