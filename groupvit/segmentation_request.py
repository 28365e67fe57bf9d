"""What a user asks of a segmentation beside its words: an image, and what counts as background."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from groupvit.config import SegmentationConfig

MIN_SIDE = 16
"""Smallest side of an image in pixels. A smaller image shows no object, and 1 x N is nearly always a mistake."""
MAX_RATIO = 20
"""Largest ratio of the longer to the shorter side. Beyond it, a resized image is a line of a few patches."""


def check_image(image: NDArray[np.uint8]) -> None:
    """Raise ValueError unless this is an RGB image uint8 [H, W, 3] that is neither too small nor too long."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image is {image.dtype} {list(image.shape)}: uint8 [H, W, 3] is needed")
    height, width = image.shape[:2]
    if min(height, width) < MIN_SIDE:
        raise ValueError(f"image has {width} × {height} pixels: each side must have at least {MIN_SIDE}")
    if max(height, width) > MAX_RATIO * min(height, width):
        raise ValueError(
            f"image has {width} × {height} pixels, too long for its width: crop it to at most {MAX_RATIO}:1"
        )


def with_background(
    config: SegmentationConfig, *, background: bool, background_threshold: float | None
) -> SegmentationConfig:
    """Apply a user's options to a protocol.

    Args:
        config: The protocol.
        background: Whether pixels can be background. False: every pixel gets a word.
        background_threshold: Pixels whose best word has a lower score are background. None: the protocol's.

    Raises:
        ValueError: The threshold is out of range.
    """
    if background_threshold is not None and not 0 <= background_threshold <= 1:
        raise ValueError(f"background_threshold={background_threshold} is out of range: give a number from 0 to 1")
    if not background:
        return replace(config, background_threshold=None, background_prompts=())
    if background_threshold is not None:
        return replace(config, background_threshold=background_threshold)
    return config
