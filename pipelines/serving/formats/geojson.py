"""GeoJSON: a word's pixels as polygons along their edges. QuPath and GIS read it.

Coordinates are pixels from the image's top left corner; y points down. The properties name the class as QuPath does.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from pipelines.masks.outlines import outline
from pipelines.serving.formats.output import Output, Result
from pipelines.serving.inputs import Picture


class GeoJsonOutput(Output):
    """`out/NAME.geojson` for each image, with one MultiPolygon per word."""

    keeps_endings = False

    @staticmethod
    def files(pictures: Sequence[Picture]) -> Iterator[str]:
        return (f"{picture.stem}.geojson" for picture in pictures)

    def add(self, result: Result) -> None:
        height, width = result.size
        features = [
            {
                "type": "Feature",
                "geometry": {"type": "MultiPolygon", "coordinates": outline(mask)},
                "properties": {
                    "name": word,
                    "objectType": "annotation",
                    "classification": {"name": word, "color": self.colours[number - 1]},
                    "pixels": int(mask.sum()),
                },
            }
            for number, word, mask in result.masks()
        ]
        about = {"image": result.picture.uri, "width": width, "height": height}
        content = {"type": "FeatureCollection", **about, "features": features}
        self.write(f"{result.picture.stem}.geojson", f"{json.dumps(content)}\n".encode())

    def finish(self, about: dict[str, Any]) -> None:
        """Nothing is about all images."""
