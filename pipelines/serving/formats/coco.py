"""COCO's annotations, with masks as run lengths: one object per word and image. pycocotools reads it."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from pipelines.masks.coco import box_of, encode_mask
from pipelines.serving.formats.output import Output, Result
from pipelines.serving.inputs import Picture

FILE = "coco.json"


class CocoOutput(Output):
    """`out/coco.json`. A word's category is its number, from 1; the background has none."""

    keeps_endings = True

    def __init__(self, out: str, words: Sequence[str], *, background: bool) -> None:
        super().__init__(out, words, background=background)
        self._images: list[str] = []  # as JSON, which needs less memory
        self._annotations: list[str] = []

    @staticmethod
    def files(pictures: Sequence[Picture]) -> Iterator[str]:
        yield FILE

    def add(self, result: Result) -> None:
        height, width = result.size
        image_id = len(self._images) + 1
        image = {"id": image_id, "file_name": result.picture.name, "width": width, "height": height}
        self._images.append(json.dumps(image))
        for category, _, mask in result.masks():
            annotation = {
                "id": len(self._annotations) + 1,
                "image_id": image_id,
                "category_id": category,
                "segmentation": {"size": [height, width], "counts": encode_mask(mask)},
                "area": int(mask.sum()),
                "bbox": box_of(mask),
                "iscrowd": 0,
            }
            self._annotations.append(json.dumps(annotation))

    def finish(self, about: dict[str, Any]) -> None:
        categories = [{"id": number, "name": word} for number, word in enumerate(self.words, start=1)]
        head = {"info": {"description": "Segmented by words with GroupViT", **about}, "licenses": []}
        parts = [
            json.dumps(head)[:-1],
            f', "categories": {json.dumps(categories)}, "images": [\n',
            ",\n".join(self._images),
            '\n], "annotations": [\n',
            ",\n".join(self._annotations),
            "\n]}\n",
        ]
        self.write(FILE, "".join(parts).encode())
