"""A folder of images of one's own, with the same masks as label files, COCO's annotations or Label Studio's export."""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from pipelines.masks.brush import encode_brush
from pipelines.masks.coco import encode_mask
from tests.support.image_files import png

Kind = Literal["labels", "coco", "label-studio"]
KINDS: tuple[Kind, ...] = ("labels", "coco", "label-studio")
CLASSES = "background\ndog: dog, puppy\n\ngreen grass\n"
NAMES = ("background", "dog", "green grass")
FILES = ("a.jpg", "sub/b c.png")


def own_masks() -> dict[str, np.ndarray]:
    """A mask for each file: 0 is the background, 1 a dog, 2 grass."""
    masks = {}
    for seed, (file, (height, width)) in enumerate(zip(FILES, ((64, 96), (80, 50)), strict=True)):
        y, x = np.mgrid[:height, :width]
        masks[file] = np.where((x * 5 + y * 3 + seed) % 37 < 9, 2, 0).astype(np.uint8)
        masks[file][(y - 30) ** 2 + (x - 25) ** 2 < 300] = 1
    return masks


def write_own_folder(root: Path, kind: Kind, *, classes: str = CLASSES) -> Path:
    rng = np.random.default_rng(0)
    (root / "images/sub").mkdir(parents=True)
    (root / "classes.txt").write_text(classes)
    masks = own_masks()
    for file, mask in masks.items():
        Image.fromarray(rng.integers(0, 255, (*mask.shape, 3), dtype=np.uint8)).save(root / "images" / file)
    if kind == "labels":
        for file, mask in masks.items():
            label_file = (root / "labels" / file).with_suffix(".png")
            label_file.parent.mkdir(parents=True, exist_ok=True)
            label_file.write_bytes(png(mask))
    else:
        content = coco_file(masks) if kind == "coco" else label_studio_file(masks)
        (root / f"{kind}.json").write_text(json.dumps(content))
    return root


def coco_file(masks: dict[str, np.ndarray]) -> dict[str, Any]:
    """Grass as one object below the dog, which covers a part of it."""
    images, annotations = [], []
    for image_id, (file, mask) in enumerate(masks.items(), start=7):
        height, width = mask.shape
        images.append({"id": image_id, "file_name": file, "height": height, "width": width, "license": 1})
        for category, covered in ((30, mask > 0), (20, mask == 1), (30, mask == 2)):
            segmentation = {"size": [height, width], "counts": encode_mask(covered)}
            annotation = {"image_id": image_id, "category_id": category, "segmentation": segmentation, "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, **annotation})
    categories = [{"id": 20, "name": "dog"}, {"id": 30, "name": "green grass"}, {"id": 40, "name": "never used"}]
    return {"info": {}, "images": images, "categories": categories, "annotations": annotations}


def label_studio_file(masks: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """An upload, a file of local storage, and a task that nobody has annotated."""
    tasks = []
    addresses = ("/data/upload/3/1a2b3c4d-a.jpg", "/data/local-files/?d=pictures/sub/b%20c.png")
    for number, (mask, address) in enumerate(zip(masks.values(), addresses, strict=True), start=1):
        regions = [region(mask > 0, "green grass"), region(mask == 1, "dog"), region(mask == 2, "green grass")]
        regions += [
            {"type": "relation", "from_id": "r1", "to_id": "r2"},
            {"type": "choices", "value": {"choices": ["x"]}},
        ]
        wrong = {"result": [region(mask >= 0, "dog")], "was_cancelled": False}
        annotations = [wrong, {"result": regions, "was_cancelled": False}, {**wrong, "was_cancelled": True}]
        if number == 2:
            annotations = [{"result": regions, "ground_truth": True}, wrong]
        tasks.append({"id": number, "data": {"image": address}, "annotations": annotations, "predictions": []})
    return tasks


def region(mask: np.ndarray, name: str) -> dict[str, Any]:
    height, width = mask.shape
    value = {"format": "rle", "rle": encode_brush(mask), "brushlabels": [name]}
    size = {"original_width": width, "original_height": height, "image_rotation": 0}
    return {"id": "r1", "type": "brushlabels", "from_name": "tag", "to_name": "image", **size, "value": value}
