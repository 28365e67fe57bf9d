"""Reads an export of Label Studio in its own format, JSON, with regions that its brush has drawn.

Of a task with several annotations, the one that is marked as ground truth counts, else the last; cancelled ones do not.
A pixel has the label of the last region that covers it, and is covered where the brush is not fully transparent. Labels
are found in classes.txt by name.
"""

import re
from collections.abc import Collection, Mapping
from typing import Annotated, Any, NotRequired
from urllib.parse import parse_qs, unquote, urlsplit

from pydantic import Field, with_config
from typing_extensions import TypedDict  # pydantic asks for it before Python 3.12

from groupvit.decode import MAX_PIXELS
from pipelines import documents
from pipelines.benchmarks.annotated import AnnotatedImage, Brush, Region

FIX = "export the project again as JSON"
_UPLOADED = re.compile(r"^[0-9a-f]{8}-")
"""Label Studio puts this before the names of uploaded files."""
MAX_ADDRESS = 4096
"""Largest number of characters of an image's address that is looked at."""
Side = Annotated[int, Field(ge=1, le=2**20)]


@with_config(documents.KEEP_OTHERS)
class RegionValue(TypedDict):
    format: NotRequired[str]
    rle: NotRequired[list[Annotated[int, Field(ge=0, le=255)]]]
    brushlabels: NotRequired[list[str]]


@with_config(documents.KEEP_OTHERS)
class ExportedRegion(TypedDict):
    id: NotRequired[Any]
    type: NotRequired[str]
    """Relations between regions have other types, and no value."""
    value: NotRequired[RegionValue]
    original_width: NotRequired[Side]
    original_height: NotRequired[Side]
    image_rotation: NotRequired[documents.Finite]


@with_config(documents.KEEP_OTHERS)
class ExportedAnnotation(TypedDict):
    result: list[ExportedRegion]
    was_cancelled: NotRequired[bool]
    ground_truth: NotRequired[bool]


@with_config(documents.KEEP_OTHERS)
class ExportedTask(TypedDict):
    id: NotRequired[int]
    data: dict[str, Any]
    annotations: NotRequired[list[ExportedAnnotation]]


def read_label_studio(
    content: bytes, uri: str, labels: Mapping[str, int], files: Collection[str]
) -> dict[str, AnnotatedImage]:
    """Returns the annotated images by file. Tasks without annotation are left out.

    Args:
        content: The file.
        uri: Its place, for errors.
        labels: Label of each class by its name.
        files: Paths of the images that there are. A task's image is the one with the longest common end of its path.

    Raises:
        ValueError: The file is invalid, a label is none of the classes, or an image is not among `files`. One line.
    """
    images: dict[str, AnnotatedImage] = {}
    for number, task in enumerate(documents.parse(content, list[ExportedTask], uri, FIX), start=1):
        where = f"{uri}: task {task.get('id', f'number {number}')}"
        file = _file(task["data"], where, files)
        annotations = [entry for entry in task.get("annotations", []) if not entry.get("was_cancelled")]
        chosen = [entry for entry in annotations if entry.get("ground_truth")] or annotations
        if not chosen:
            continue
        if file in images:
            raise ValueError(f"{where} has the image {file}, which another task has, too: leave one out")
        images[file] = _image(file, chosen[-1]["result"], where, labels)
    return images


def _image(file: str, results: list[ExportedRegion], where: str, labels: Mapping[str, int]) -> AnnotatedImage:
    size: tuple[int, int] | None = None
    regions: list[Region] = []
    for number, result in enumerate(results, start=1):
        kind, value = result.get("type", ""), result.get("value", {})
        name = f"region {str(result.get('id', f'number {number}'))[:40]}"
        if not kind.endswith("labels") and kind != "brush":
            continue  # comments and choices cover no pixels
        if kind != "brushlabels" or "rle" not in value or value.get("format", "rle") != "rle":
            raise ValueError(f"{where}: {name} has the type {kind[:40]!r}: only BrushLabels are read")
        names = value.get("brushlabels", [])
        if len(names) != 1 or names[0].strip() not in labels:
            raise ValueError(
                f"{where}: {name} has brushlabels={names[:3]}: one is needed, which is a name in classes.txt"
            )
        if "original_height" not in result or "original_width" not in result or result.get("image_rotation", 0) != 0:
            raise ValueError(f"{where}: {name} has no original_height and original_width, or is rotated: {FIX}")
        own = (result["original_height"], result["original_width"])
        if size not in (None, own) or own[0] * own[1] > MAX_PIXELS:
            raise ValueError(f"{where}: {name} is of an image of {own[1]}×{own[0]} pixels, others are not: {FIX}")
        size = own
        regions.append(Region(name=name, label=labels[names[0].strip()], shape=Brush(bytes(value["rle"]))))
    return AnnotatedImage(file=file, size=size, regions=tuple(regions))


def _file(data: Mapping[str, Any], where: str, files: Collection[str]) -> str:
    """Returns the image of a task."""
    texts = [data["image"]] if isinstance(data.get("image"), str) else [v for v in data.values() if isinstance(v, str)]
    for text in texts:
        for path in _paths(text) if len(text) <= MAX_ADDRESS else ():
            parts = path.split("/")
            for start in range(len(parts)):
                if (end := "/".join(parts[start:])) in files:
                    return end
            if (name := _UPLOADED.sub("", parts[-1])) in files:
                return name
    shown = ", ".join(repr(text[:100]) for text in texts[:3])
    raise ValueError(f"{where} has the image {shown or 'of no name'}, which is not in images/: add it")


def _paths(address: str) -> list[str]:
    """Returns what may be the path in an address: itself, without its host, and the one that local storage has."""
    try:
        split = urlsplit(address)
        local = parse_qs(split.query).get("d", [])  # /data/local-files/?d=PATH
    except ValueError:  # it is not an address
        return [address]
    return [*local, address, unquote(split.path)]
