"""Miniatures of the benchmarks in their official layouts, of real photos and their real masks.

Three images of PASCAL VOC 2011 come with the source distribution of labelme 6.3.1 (GPL-3.0), fetched with pip and never
kept in this repository. The other benchmarks get crops of them, their masks written with that benchmark's raw values.
"""

import hashlib
import io
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.benchmarks.class_lists import read_imagenet_classes
from tests.support.image_files import encoded, png

SOURCE = "labelme==6.3.1"
SHA256 = "2947e0d8341a92faa7b3ee50cf4b672f838051c6bf24892526e95b64fd3a707e"
FOLDER = "labelme-6.3.1/examples/semantic_segmentation/data_dataset_voc"
NAMES = ("2011_000003", "2011_000006", "2011_000025")


@dataclass(frozen=True)
class Photo:
    """A VOC image with its labels."""

    name: str
    jpeg: bytes
    labels: bytes
    """The label file: a PNG with a palette."""

    @property
    def values(self) -> np.ndarray:
        """uint8 [H, W]: VOC's classes, 255 along borders."""
        with Image.open(io.BytesIO(self.labels)) as file:
            return np.array(file)

    @property
    def crop(self) -> tuple[bytes, np.ndarray]:
        """The middle 240×200 pixels as a JPEG file, and their VOC labels."""
        with Image.open(io.BytesIO(self.jpeg)) as file:
            left, top = (file.width - 240) // 2, (file.height - 200) // 2
            jpeg = encoded(file.crop((left, top, left + 240, top + 200)), quality=95)
        return jpeg, self.values[top : top + 200, left : left + 240]


def fetch_photos(folder: Path) -> list[Photo]:
    """The three images; skips the test, with the reason, where pip cannot get them."""
    requirement = folder / "requirements.txt"
    requirement.write_text(f"{SOURCE} --hash=sha256:{SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "labelme"]
    command += ["--dest", str(folder), "--require-hashes", "--requirement", str(requirement)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    archives = list(folder.glob("labelme-*.tar.gz"))
    if done.returncode or not archives:
        pytest.skip(f"pip download {SOURCE} failed: {done.stderr.strip().splitlines()[-1:]}")
    assert hashlib.sha256(archives[0].read_bytes()).hexdigest() == SHA256
    with tarfile.open(archives[0]) as archive:

        def content(path: str) -> bytes:
            member = archive.extractfile(f"{FOLDER}/{path}")
            assert member is not None
            return member.read()

        return [
            Photo(name, content(f"JPEGImages/{name}.jpg"), content(f"SegmentationClass/{name}.png")) for name in NAMES
        ]


def write_voc(folder: Path, photos: list[Photo]) -> Path:
    """The three images as they are, in VOC's layout."""
    base = folder / "VOCdevkit/VOC2012"
    for photo in photos:
        _write(base / f"JPEGImages/{photo.name}.jpg", photo.jpeg)
        _write(base / f"SegmentationClass/{photo.name}.png", photo.labels)
    _write(base / "ImageSets/Segmentation/val.txt", "".join(f"{photo.name}\n" for photo in photos).encode())
    return folder


def write_context(folder: Path, photos: list[Photo]) -> Path:
    """Label files as converted: 0 for none of the 59 classes."""
    base = folder / "VOCdevkit/VOC2010"
    for photo in photos:
        _write(base / f"JPEGImages/{photo.name}.jpg", photo.jpeg)
        values = _translated(photo.values, {0: 0, 255: 0, 5: 10, 6: 12, 7: 14, 9: 17, 15: 37, 18: 49})
        _write(base / f"SegmentationClassContext/{photo.name}.png", png(values))
    _write(base / "ImageSets/SegmentationContext/val.txt", "".join(f"{photo.name}\n" for photo in photos).encode())
    return folder


def write_coco(folder: Path, photos: list[Photo]) -> Path:
    """Label files as COCO-Stuff distributes them: category id − 1; VOC's background becomes stuff."""
    for number, photo in enumerate(photos):
        image, values = photo.crop
        raw = _translated(values, {0: 172, 255: 255, 5: 43, 6: 5, 7: 2, 9: 61, 15: 0, 18: 62})
        raw[:20] = 123  # grass
        _write(folder / f"images/val2017/{number:012d}.jpg", image)
        _write(folder / f"annotations/val2017/{number:012d}.png", png(raw))
    return folder


def write_cityscapes(folder: Path, photos: list[Photo]) -> Path:
    """Label files of ids, as distributed."""
    for photo, city in zip(photos, ("frankfurt", "lindau", "munster"), strict=True):
        image, values = photo.crop
        with Image.open(io.BytesIO(image)) as file:
            image = png(np.array(file))
        ids = _translated(values, {0: 11, 255: 0, 5: 17, 6: 28, 7: 26, 9: 4, 15: 24, 18: 3})
        ids[-20:] = 7  # road
        name = f"{city}_000000_000019"
        _write(folder / f"leftImg8bit/val/{city}/{name}_leftImg8bit.png", image)
        _write(folder / f"gtFine/val/{city}/{name}_gtFine_labelIds.png", png(ids))
    return folder


def write_ade20k(folder: Path, photos: list[Photo]) -> Path:
    """0 for none of the 150 classes."""
    base = folder / "ADEChallengeData2016"
    for number, photo in enumerate(photos, start=1):
        image, values = photo.crop
        raw = _translated(values, {0: 1, 255: 0, 5: 99, 6: 81, 7: 21, 9: 20, 15: 13, 18: 24})
        _write(base / f"images/validation/ADE_val_{number:08d}.jpg", image)
        _write(base / f"annotations/validation/ADE_val_{number:08d}.png", png(raw))
    return folder


def write_imagenet(folder: Path, photos: list[Photo], num_images: int) -> Path:
    """Crops of the photos in folders of classes."""
    classes = read_imagenet_classes()
    for number, (image, label) in enumerate(_crops(photos, num_images)):
        _write(folder / f"val/{classes[label][0]}/ILSVRC2012_val_{number:08d}.JPEG", image)
    return folder


def write_imagenet_parquet(folder: Path, photos: list[Photo], num_images: int) -> Path:
    """The same in two Parquet files, as on Hugging Face, in row groups of 3."""
    (folder / "data").mkdir(parents=True)
    rows = [
        {"image": {"bytes": image, "path": "x.JPEG"}, "label": label} for image, label in _crops(photos, num_images)
    ]
    half = num_images // 2
    for number, some in enumerate((rows[:half], rows[half:])):
        file = folder / f"data/validation-{number:05d}-of-00002.parquet"
        pq.write_table(pa.Table.from_pylist(some), file, row_group_size=3)
    return folder


def _crops(photos: list[Photo], num_images: int) -> list[tuple[bytes, int]]:
    """JPEG files of several sizes, two to a class, in the order of their classes."""
    crops = []
    for number in range(num_images):
        with Image.open(io.BytesIO(photos[number % 3].jpeg)) as file:
            left, top = 11 * number % 200, 7 * number % 100
            cropped = file.crop((left, top, left + 120 + 9 * number % 100, top + 160))
        crops.append((encoded(cropped, quality=95), 83 * (number // 2) % 1000))
    return crops


def _translated(values: np.ndarray, raw_of_voc: dict[int, int]) -> np.ndarray:
    table = np.zeros(256, np.uint8)
    for value in np.unique(values).tolist():
        table[value] = raw_of_voc[value]
    return table[values]


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
