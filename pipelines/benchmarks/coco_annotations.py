"""Reads annotations in COCO's format: `images`, `categories`, and `annotations` with run lengths or polygons.

A pixel has the category of the last annotation that covers it. Categories are found in classes.txt by name.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Annotated, NotRequired

from pydantic import Field, with_config
from typing_extensions import TypedDict  # pydantic asks for it before Python 3.12

from groupvit.decode import MAX_PIXELS
from pipelines import documents
from pipelines.benchmarks.annotated import AnnotatedImage, Polygons, Region, RunLengths

FIX = "export it again in COCO's format"
Side = Annotated[int, Field(ge=1, le=2**20)]


class CocoMask(TypedDict):
    """A mask of COCO's run-length encoding."""

    size: list[int]
    """Height and width."""
    counts: str | list[documents.Count]


@with_config(documents.KEEP_OTHERS)
class CocoImage(TypedDict):
    id: int
    file_name: str
    height: Side
    width: Side


@with_config(documents.KEEP_OTHERS)
class CocoCategory(TypedDict):
    id: int
    name: str


@with_config(documents.KEEP_OTHERS)
class CocoAnnotation(TypedDict):
    id: NotRequired[int]
    image_id: int
    category_id: int
    segmentation: CocoMask | list[list[documents.Finite]]


@with_config(documents.KEEP_OTHERS)
class CocoFile(TypedDict):
    images: list[CocoImage]
    categories: list[CocoCategory]
    annotations: list[CocoAnnotation]


def read_coco(content: bytes, uri: str, labels: Mapping[str, int]) -> dict[str, AnnotatedImage]:
    """Returns the images by file name.

    Args:
        content: The file.
        uri: Its place, for errors.
        labels: Label of each class by its name.

    Raises:
        ValueError: The file is invalid, or a category is none of the classes. One line.
    """
    parsed: CocoFile = documents.parse(content, CocoFile, uri, FIX)
    images: dict[int, CocoImage] = {}
    files: set[str] = set()
    for image in parsed["images"]:
        name = documents.in_folder(image["file_name"], uri, FIX)
        if image["id"] in images or name in files:
            raise ValueError(f"{uri} has the image {name[:200]!r} or its id {image['id']} twice: {FIX}")
        if image["height"] * image["width"] > MAX_PIXELS:
            raise ValueError(f"{uri}: {name[:200]!r} has {image['width']}×{image['height']} pixels: shrink it")
        images[image["id"]] = image
        files.add(name)
    names = {category["id"]: category["name"].strip() for category in parsed["categories"]}
    regions: dict[int, list[Region]] = defaultdict(list)
    for number, annotation in enumerate(parsed["annotations"]):
        region = f"annotation {annotation.get('id', f'number {number}')}"
        if annotation["image_id"] not in images:
            raise ValueError(f"{uri}: {region} has image_id={annotation['image_id']}, which is not an image: {FIX}")
        if annotation["category_id"] not in names:
            raise ValueError(
                f"{uri}: {region} has category_id={annotation['category_id']}, which is not a category: {FIX}"
            )
        name = names[annotation["category_id"]]
        if name not in labels:
            raise ValueError(
                f"{uri}: {region} has the category {name[:200]!r}, which classes.txt does not have: add a line for it"
            )
        image, drawn = images[annotation["image_id"]], annotation["segmentation"]
        if isinstance(drawn, list):
            shape = Polygons(tuple(map(tuple, drawn)))
        elif drawn["size"] == [image["height"], image["width"]]:
            counts = drawn["counts"]
            shape = RunLengths(counts if isinstance(counts, str) else tuple(counts))
        else:
            expected = [image["height"], image["width"]]
            raise ValueError(f"{uri}: {region} has a mask of size {drawn['size'][:3]}, its image has {expected}: {FIX}")
        regions[annotation["image_id"]].append(Region(name=region, label=labels[name], shape=shape))
    return {
        image["file_name"]: AnnotatedImage(
            file=image["file_name"], size=(image["height"], image["width"]), regions=tuple(regions[number])
        )
        for number, image in images.items()
    }
