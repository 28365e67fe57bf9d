"""Images whose masks are drawn objects, one per region, as COCO's annotations and Label Studio's exports have them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from groupvit.decode import decode_image
from pipelines import storage
from pipelines.benchmarks.dataset import Scene, SegmentationDataset
from pipelines.masks.brush import decode_brush
from pipelines.masks.coco import decode_mask, fill_polygons


class Shape(Protocol):
    """What a region covers."""

    def mask(self, height: int, width: int) -> NDArray[np.bool_]:
        """Draws it as bool [H, W]. Raises ValueError if it is not for an image of this size."""
        ...


@dataclass(frozen=True)
class RunLengths:
    """COCO's run lengths, as text or numbers."""

    counts: str | tuple[int, ...]

    def mask(self, height: int, width: int) -> NDArray[np.bool_]:
        return decode_mask(self.counts, height, width)


@dataclass(frozen=True)
class Polygons:
    """COCO's polygons: x, y, x, y, ... in pixels."""

    points: tuple[tuple[float, ...], ...]

    def mask(self, height: int, width: int) -> NDArray[np.bool_]:
        return fill_polygons(self.points, height, width)


@dataclass(frozen=True)
class Brush:
    """What Label Studio's brush has drawn."""

    rle: bytes

    def mask(self, height: int, width: int) -> NDArray[np.bool_]:
        return decode_brush(self.rle, height, width)


@dataclass(frozen=True, kw_only=True)
class Region:
    """A region of a class."""

    name: str
    """How an error names it."""
    label: int
    shape: Shape


@dataclass(frozen=True, kw_only=True)
class AnnotatedImage:
    """An image and its regions. A region covers those before it."""

    file: str
    """Path relative to the folder of the data set."""
    size: tuple[int, int] | None
    """Height and width that the annotations give it. None if they do not: then there are no regions."""
    regions: tuple[Region, ...]


@dataclass(frozen=True, kw_only=True)
class AnnotatedDataset(SegmentationDataset):
    """Annotated images in the folder `uri`."""

    annotations: str
    """The file of the annotations, as errors name it."""
    images: tuple[AnnotatedImage, ...]
    unlabelled: int
    """Label of pixels in no region: the background's, or 255, which is ignored."""

    def blocks(self, indexes: Sequence[int], block_size: int) -> list[tuple[int, ...]]:
        return [tuple(indexes[start : start + block_size]) for start in range(0, len(indexes), block_size)]

    def read(self, block: tuple[int, ...]) -> Iterator[Scene]:
        for index in block:
            entry = self.images[index]
            uri = storage.join(self.uri, entry.file)
            content = storage.read_bytes(uri)
            try:
                image = decode_image(content)
                if image.shape[1::-1] == entry.size != image.shape[:2]:
                    image = decode_image(content, upright=False)  # its regions were drawn on the unrotated image
            except ValueError as error:
                raise ValueError(f"{uri}: {error}") from error
            height, width = image.shape[:2]
            if entry.size not in (None, (height, width)):
                raise ValueError(
                    f"{self.annotations} gives {entry.file} {entry.size[1]}×{entry.size[0]} pixels, but it has "
                    f"{width}×{height}: they must agree"
                )
            path = PurePosixPath(entry.file)
            yield Scene(
                index=index,
                sample_id=path.stem,
                image=image,
                mask=self._mask(entry, height, width),
                caption=path.name,
                part=self.benchmark,
            )

    def _mask(self, entry: AnnotatedImage, height: int, width: int) -> NDArray[np.uint8]:
        mask = np.full((height, width), self.unlabelled, dtype=np.uint8)
        for region in entry.regions:
            try:
                mask[region.shape.mask(height, width)] = region.label
            except ValueError as error:
                raise ValueError(f"{self.annotations}: {region.name} of {entry.file}: {error}") from error
        return mask
