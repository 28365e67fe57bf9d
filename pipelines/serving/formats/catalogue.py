"""All formats of other tools by the names that users give. `png`, the default, is in `pictures`."""

from typing import Literal

from pipelines.serving.formats.coco import CocoOutput
from pipelines.serving.formats.fiftyone import FiftyOneOutput
from pipelines.serving.formats.geojson import GeoJsonOutput
from pipelines.serving.formats.label_studio import LabelStudioOutput
from pipelines.serving.formats.output import Output

Format = Literal["png", "coco-rle", "label-studio", "fiftyone", "geojson"]
OUTPUTS: dict[Format, type[Output]] = {
    "coco-rle": CocoOutput,
    "label-studio": LabelStudioOutput,
    "fiftyone": FiftyOneOutput,
    "geojson": GeoJsonOutput,
}
