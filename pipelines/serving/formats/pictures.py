"""Pictures to look at, and labels as PNG: a folder for each image."""

import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from groupvit.segmenter import Segmented
from groupvit.visualize import encode_labels, group_picture, label_palette, overlay, with_legend
from pipelines import storage
from pipelines.serving.inputs import Picture

LONGEST_DRAWN = 2048
"""Largest number of pixels of the longer side of overlays and group pictures. Labels have the image's own size."""


def folders_of(pictures: Sequence[Picture], out: str) -> list[str]:
    """Returns a folder in `out` for each image. Names differ also on file systems that ignore case."""
    taken: set[str] = set()
    folders: list[str] = []
    for picture in pictures:
        name = picture.stem
        number = 1
        while name.casefold() in taken:
            number += 1
            name = f"{picture.stem}-{number}"
        taken.add(name.casefold())
        folders.append(storage.join(out, name))
    return folders


def write_pictures(
    folder: str, image: NDArray[np.uint8], found: Segmented, summary: dict[str, Any], *, show_groups: bool
) -> None:
    """Writes labels.png, overlay.png, segmentation.json and, if asked, groups_stage_1.png and so on."""
    colours = label_palette(len(found.names), found.has_background)
    storage.write_bytes(storage.join(folder, "labels.png"), encode_labels(found.labels, colours))
    image, labels = _drawn_size(image, found.labels)
    tinted = overlay(image, labels, colours, found.has_background)
    storage.write_bytes(storage.join(folder, "overlay.png"), _png(with_legend(tinted, found.names, colours, labels)))
    for stage, group_map in enumerate(found.group_maps if show_groups else (), start=1):
        storage.write_bytes(storage.join(folder, f"groups_stage_{stage}.png"), _png(group_picture(image, group_map)))
    storage.write_bytes(storage.join(folder, "segmentation.json"), (json.dumps(summary, indent=2) + "\n").encode())


def _drawn_size(image: NDArray[np.uint8], labels: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    height, width = labels.shape
    scale = LONGEST_DRAWN / max(height, width)
    if scale >= 1:
        return image, labels
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    smaller = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    return np.asarray(smaller), np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()
