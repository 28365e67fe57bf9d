"""Makes the label files of PASCAL Context from the annotations of PASCAL in Detail.

    groupvit prepare-context --root data/VOCdevkit

It reads `trainval_merged.json` (COCO's run-length encoding, one mask per object and category). For the 5,105 validation
images it writes `SegmentationClassContext/NAME.png` and finally `ImageSets/SegmentationContext/val.txt`. The file is
large, and reading it takes several times its size in memory.
"""

import io
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, with_config
from typing_extensions import TypedDict  # pydantic asks for it before Python 3.12

from groupvit.decode import MAX_PIXELS
from pipelines import documents, storage
from pipelines.benchmarks.class_lists import read_classes
from pipelines.benchmarks.context import LABELS, LIST, find_context
from pipelines.local.writable import check_writable
from pipelines.masks.coco import decode_mask

ANNOTATIONS = "trainval_merged.json"
_IMAGE_NAME = re.compile(r"(\w+)\.jpg")
_MAX_BYTES = 2**31


class RunLengths(TypedDict):
    """A mask of COCO's run-length encoding."""

    size: list[int]
    """Height and width."""
    counts: str | list[int]


@with_config(documents.KEEP_OTHERS)
class AnnotatedImage(TypedDict):
    image_id: int
    phase: str
    file_name: str
    height: Annotated[int, Field(ge=1, le=2**20)]
    width: Annotated[int, Field(ge=1, le=2**20)]


@with_config(documents.KEEP_OTHERS)
class AnnotatedMask(TypedDict):
    image_id: int
    category_id: int
    segmentation: RunLengths | list[Any]
    """Only the first is used."""


@with_config(documents.KEEP_OTHERS)
class Annotations(TypedDict):
    """trainval_merged.json"""

    images: list[AnnotatedImage]
    annos_segmentation: list[AnnotatedMask]


@dataclass(frozen=True, kw_only=True)
class PrepareContextConfig:
    """Configures the location of PASCAL Context."""

    root: str
    """Folder that contains VOCdevkit/VOC2010, or VOC2010 itself: a local path or s3:// URI. One of them contains
    trainval_merged.json."""


def prepare_context(config: PrepareContextConfig) -> dict[str, Any]:
    """Writes the label files and their list, and returns their folder and number. Raises ValueError if the annotations
    are missing or corrupted.
    """
    folder = find_context(config.root, "PASCAL Context")
    candidates = [storage.join(where, ANNOTATIONS) for where in (folder, storage.absolute(config.root))]
    uri = next((candidate for candidate in candidates if storage.exists(candidate)), None)
    if uri is None:
        raise ValueError(
            f"root={config.root}: none of {', '.join(candidates)} exists; "
            "get it from https://cs.stanford.edu/~roozbeh/pascal-context/"
        )
    check_writable(storage.join(folder, LABELS), "root")
    images, masks = _read(uri)
    try:
        for image in images:
            labels = draw_labels(image, masks[image["image_id"]])
            file = io.BytesIO()
            Image.fromarray(labels).save(file, format="PNG")
            storage.write_bytes(storage.join(folder, LABELS, f"{_stem(image)}.png"), file.getvalue())
    except KeyError as error:
        raise ValueError(f"{uri} has an entry without {error}: get it again") from error
    except ValueError as error:
        raise ValueError(f"{uri} cannot be used: {error}") from error
    names = sorted(_stem(image) for image in images)
    storage.write_bytes(storage.join(folder, LIST), "".join(f"{name}\n" for name in names).encode())
    print(f"{len(names):,} label files written to {storage.join(folder, LABELS)}")
    return {"labels": storage.join(folder, LABELS), "num_images": len(names)}


def draw_labels(image: dict[str, Any], masks: list[dict[str, Any]]) -> NDArray[np.uint8]:
    """Draws the label map uint8 [H, W]. Later masks cover earlier ones. Raises ValueError for invalid masks."""
    height, width = image["height"], image["width"]
    if not 0 < height * width <= MAX_PIXELS:
        raise ValueError(f"image {_stem(image)} has {width}×{height} pixels")
    label_of_category = {entry.number: label for label, entry in enumerate(read_classes("context"))}
    labels = np.zeros((height, width), dtype=np.uint8)
    for mask in masks:
        category, encoded = mask["category_id"], mask["segmentation"]
        if category not in label_of_category:
            raise ValueError(f"image {_stem(image)} has category_id {category}, which is none of the 59 classes")
        if not isinstance(encoded, dict) or encoded["size"] != [height, width]:
            raise ValueError(f"image {_stem(image)} has a mask that is not a run-length encoding of {height}×{width}")
        labels[decode_mask(encoded["counts"], height, width)] = label_of_category[category]
    return labels


def _read(uri: str) -> tuple[list[dict[str, Any]], dict[int, list[dict[str, Any]]]]:
    """Returns the validation images, and the masks by image."""
    content = documents.read(uri, Annotations, "get it again", _MAX_BYTES)
    images = [image for image in content["images"] if image["phase"] == "val"]
    wanted = {image["image_id"] for image in images}
    masks: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for mask in content["annos_segmentation"]:
        if mask["image_id"] in wanted:
            masks[mask["image_id"]].append(mask)
    return images, masks


def _stem(image: dict[str, Any]) -> str:
    """Returns the image's name without extension. Raises ValueError if it could point outside the folder."""
    match = _IMAGE_NAME.fullmatch(image["file_name"])
    if match is None:
        raise ValueError(f"{image['file_name']!r} is not a name of an image; NAME.jpg is expected")
    return match[1]
