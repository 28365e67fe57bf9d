"""Tasks for Label Studio, with masks as its brush draws them, and the labelling configuration that they are for.

An image on s3:// keeps its address. One on a disk is named as Label Studio's local storage asks for it, relative to the
folder in LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT: here, the folder that was given.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from pipelines.masks.brush import encode_brush
from pipelines.serving.formats.output import Output, Result
from pipelines.serving.inputs import Picture

FILE, CONFIG = "label-studio.json", "label-studio.xml"
FROM_NAME, TO_NAME = "tag", "image"


class LabelStudioOutput(Output):
    """`out/label-studio.json`, one task per image with a prediction, and `out/label-studio.xml`."""

    keeps_endings = True

    def __init__(self, out: str, words: Sequence[str], *, background: bool) -> None:
        super().__init__(out, words, background=background)
        self._tasks: list[str] = []  # as JSON, which needs less memory

    @staticmethod
    def files(pictures: Sequence[Picture]) -> Iterator[str]:
        yield from (FILE, CONFIG)

    def add(self, result: Result) -> None:
        height, width = result.size
        regions = [
            {
                "id": f"word{number}",
                "type": "brushlabels",
                "from_name": FROM_NAME,
                "to_name": TO_NAME,
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "value": {"format": "rle", "rle": encode_brush(mask), "brushlabels": [word]},
            }
            for number, word, mask in result.masks()
        ]
        picture = result.picture
        is_local = "://" not in picture.uri
        address = f"/data/local-files/?d={quote(picture.name)}" if is_local else picture.uri
        prediction = {"model_version": "groupvit", "result": regions}
        self._tasks.append(json.dumps({"data": {"image": address}, "predictions": [prediction]}))

    def finish(self, about: dict[str, Any]) -> None:
        self.write(FILE, ("[\n" + ",\n".join(self._tasks) + "\n]\n").encode())
        labels = "".join(
            f'    <Label value={quoteattr(word)} background="#{bytes(colour).hex()}"/>\n'
            for word, colour in zip(self.words, self.colours, strict=True)
        )
        brush = f'  <BrushLabels name="{FROM_NAME}" toName="{TO_NAME}">\n{labels}  </BrushLabels>\n'
        image = f'  <Image name="{TO_NAME}" value="$image"/>\n'
        self.write(CONFIG, f"<View>\n{image}{brush}</View>\n".encode())
