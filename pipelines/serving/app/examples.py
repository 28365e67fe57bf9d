"""Example images for visitors who bring none: read once at the start, scaled down, and served by number."""

import dataclasses
import io
import sys
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from groupvit.segmentation_request import check_image
from pipelines import storage
from pipelines.benchmarks.scenes import open_scenes
from pipelines.serving.images import read_picture

MAX_EXAMPLES = 12
LONGEST_SIDE = 1024  # pixels: neither the page nor the model uses more
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """An image to try."""

    name: str
    jpeg: bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Examples:
    """Images to try, and words that match them."""

    images: tuple[Example, ...] = ()
    words: tuple[str, ...] = ()
    """Words shown on the page at the start. Empty if the folder has none."""


def read_examples(folder: str) -> Examples:
    """Reads up to 12 images: from a folder of images, in order of name, or from scenes, evenly spaced.

    Skips files that are not images, with a line on stderr. Raises ValueError if no image is left.
    """
    try:
        names = storage.list_files(folder)
    except NotADirectoryError:
        raise ValueError(f"examples={folder} is not a folder: give one with images, or leave it out") from None
    if "scenes.json" in names:
        return _of_scenes(folder)
    shown = [name for name in names if name.lower().endswith(SUFFIXES) and storage.is_data(name)]
    images = tuple(_taken(storage.join(folder, name) for name in shown))
    if not images:
        raise ValueError(
            f"examples={folder} holds no image: give a folder of {', '.join(SUFFIXES)} files, or leave it out"
        )
    return Examples(images=images)


def _taken(uris: Iterable[str]) -> Iterator[Example]:
    found = 0
    for uri in uris:
        try:
            example = _example(PurePosixPath(uri).stem, read_picture(uri))
        except ValueError as error:
            print(f"groupvit app: left out of the examples: {PurePosixPath(uri).name} ({error})", file=sys.stderr)
            continue
        yield example
        found += 1
        if found == MAX_EXAMPLES:
            return


def _of_scenes(folder: str) -> Examples:
    dataset = open_scenes(folder)
    total = len(dataset.part_of_scene)
    count = min(MAX_EXAMPLES, total)
    chosen = [position * total // count for position in range(count)]
    images = tuple(
        _example(scene.caption or f"scene {scene.index}", scene.image)
        for block in dataset.blocks(chosen, count)
        for scene in dataset.read(block)
    )
    return Examples(images=images, words=dataset.classes[int(dataset.has_background) :])


def _example(name: str, image: NDArray[np.uint8]) -> Example:
    check_image(image)
    picture = Image.fromarray(image)
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=95)
    return Example(name=name, jpeg=file.getvalue())
