"""A data set that FiftyOne reads as `fiftyone.types.ImageSegmentationDirectory`, with the images in it."""

import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from pipelines import storage
from pipelines.serving.formats.output import Output, Result
from pipelines.serving.inputs import Picture

TARGETS = "mask_targets.json"


class FiftyOneOutput(Output):
    """`out/data/NAME.jpg`, copies of the images; `out/labels/NAME.png`, grey, with the number of each pixel's word.

    0 is the background, which FiftyOne does not show. Without background, words have the same numbers, from 1.
    `out/mask_targets.json` has the word of each number.
    """

    keeps_endings = False

    @staticmethod
    def files(pictures: Sequence[Picture]) -> Iterator[str]:
        yield TARGETS
        for picture in pictures:
            yield f"data/{picture.name}"
            yield f"labels/{picture.stem}.png"

    def add(self, result: Result) -> None:
        found, picture = result.found, result.picture
        numbers = found.labels if found.has_background else found.labels + np.uint8(1)  # at most 254 words
        file = io.BytesIO()
        Image.fromarray(numbers).save(file, format="PNG")
        self.write(f"labels/{picture.stem}.png", file.getvalue())
        self.write(f"data/{picture.name}", storage.read_bytes(picture.uri))

    def finish(self, about: dict[str, Any]) -> None:
        targets = {str(number): word for number, word in enumerate(self.words, start=1)}
        self.write(TARGETS, (json.dumps({"0": "background"} | targets, indent=2) + "\n").encode())
