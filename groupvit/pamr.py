"""Pixel-adaptive mask refinement (Araslanov & Roth, CVPR 2020, section 4.3): fits masks to the edges of the image.

In each iteration, the mask values of a pixel become the mean of its neighbours' values, weighted by the similarity of
colours. The neighbours are the eight of a 3 x 3 kernel at each of six dilations.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

DILATIONS = (1, 2, 4, 8, 12, 24)
SHARPNESS = 0.1
"""Colour differences are divided by this times the local standard deviation."""


def refined(image: Tensor, masks: Tensor, num_iterations: int) -> Tensor:
    """Refine masks [K, H, W] by the image [3, H, W] for `num_iterations` iterations. Colours can have any scale.

    Refinement is linear in the masks. So to refine the maps of groups and weight them by class scores gives the same
    result as to refine the maps of classes.
    """
    weights = _weights(image)
    for _ in range(num_iterations):
        total = torch.zeros_like(masks)
        for weight, shifted in zip(weights, _neighbours(masks), strict=True):
            total.addcmul_(shifted, weight)
        masks = total
    return masks


def _weights(image: Tensor) -> Tensor:
    """Weight of each of the 48 neighbours of each pixel: [48, H, W], summing to 1.

    The softmax over neighbours of -|difference| / (0.1 x standard deviation), averaged over colours. The standard
    deviation is that of all neighbours and of the pixel itself, which counts once per dilation.
    """
    neighbours = torch.stack(list(_neighbours(image)))
    around = torch.cat([neighbours, image.expand(len(DILATIONS), *image.shape)])
    scale = SHARPNESS * around.std(dim=0) + 1e-8
    return (-(neighbours - image).abs() / scale).mean(dim=1).softmax(dim=0)


def _neighbours(maps: Tensor) -> Iterator[Tensor]:
    """Yield maps [K, H, W] shifted by each of the 48 offsets. Beyond the image, its edge is repeated."""
    height, width = maps.shape[-2:]
    reach = max(DILATIONS)
    padded = F.pad(maps[None], (reach, reach, reach, reach), mode="replicate")[0]
    for dilation in DILATIONS:
        for down in (-dilation, 0, dilation):
            for right in (-dilation, 0, dilation):
                if down or right:
                    top, left = reach + down, reach + right
                    yield padded[:, top : top + height, left : left + width]
