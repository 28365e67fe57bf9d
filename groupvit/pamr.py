"""Pixel-adaptive mask refinement (Araslanov & Roth, CVPR 2020, section 4.3): masks follow the edges of the image.

Each round, a pixel's mask values become the mean of its neighbours', weighted by how alike the colours are. The
neighbours are the eight of a 3 x 3 kernel at each of six dilations.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

DILATIONS = (1, 2, 4, 8, 12, 24)
SHARPNESS = 0.1
"""Share of the local standard deviation by which a colour difference is divided."""


def refined(image: Tensor, masks: Tensor, num_iterations: int) -> Tensor:
    """Masks [K, H, W] averaged `num_iterations` times within the image [3, H, W] (any scale of colours).

    The map from masks to masks is linear, so refining the maps of groups and mixing them by class scores gives the same
    as refining the maps of classes.
    """
    weights = _weights(image)
    for _ in range(num_iterations):
        total = torch.zeros_like(masks)
        for weight, shifted in zip(weights, _neighbours(masks), strict=True):
            total.addcmul_(shifted, weight)
        masks = total
    return masks


def _weights(image: Tensor) -> Tensor:
    """How much each of the 48 neighbours counts at each pixel: [48, H, W], summing to 1.

    The softmax over neighbours of -|difference| / (0.1 x standard deviation), averaged over colours; the deviation is
    that of all neighbours and, once per dilation, the pixel itself.
    """
    neighbours = torch.stack(list(_neighbours(image)))
    around = torch.cat([neighbours, image.expand(len(DILATIONS), *image.shape)])
    scale = SHARPNESS * around.std(dim=0) + 1e-8
    return (-(neighbours - image).abs() / scale).mean(dim=1).softmax(dim=0)


def _neighbours(maps: Tensor) -> Iterator[Tensor]:
    """Maps [K, H, W] moved by each of the 48 offsets; what would come from outside repeats the edge."""
    height, width = maps.shape[-2:]
    reach = max(DILATIONS)
    padded = F.pad(maps[None], (reach, reach, reach, reach), mode="replicate")[0]
    for dilation in DILATIONS:
        for down in (-dilation, 0, dilation):
            for right in (-dilation, 0, dilation):
                if down or right:
                    top, left = reach + down, reach + right
                    yield padded[:, top : top + height, left : left + width]
