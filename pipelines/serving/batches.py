"""Reads pictures and segments them, several at once. An invalid picture does not hold up the others."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from groupvit.segmentation_request import check_image
from groupvit.segmenter import Segmented
from pipelines.serving.images import read_picture
from pipelines.serving.inputs import Picture

Image = NDArray[np.uint8]
SegmentAll = Callable[[Sequence[Image]], list[Segmented]]


def segmented(
    pictures: Sequence[Picture], segment_all: SegmentAll, batch_size: int
) -> Iterator[tuple[Picture, tuple[Image, Segmented] | ValueError]]:
    """Yields each picture with its pixels uint8 [H, W, 3] and its segmentation, or with the error of either."""
    for start in range(0, len(pictures), batch_size):
        batch = pictures[start : start + batch_size]
        read = [_read(picture) for picture in batch]
        found = iter(_found([image for image in read if not isinstance(image, ValueError)], segment_all))
        for picture, image in zip(batch, read, strict=True):
            if isinstance(image, ValueError):
                yield picture, image
            else:
                result = next(found)
                yield picture, result if isinstance(result, ValueError) else (image, result)


def _read(picture: Picture) -> Image | ValueError:
    try:
        image = read_picture(picture.uri)
        check_image(image)
    except ValueError as error:
        return error
    return image


def _found(images: Sequence[Image], segment_all: SegmentAll) -> Sequence[Segmented | ValueError]:
    if not images:
        return []
    try:
        return segment_all(images)
    except ValueError as error:
        if len(images) == 1:
            return [error]
        return [result for image in images for result in _found([image], segment_all)]  # which of them it is
