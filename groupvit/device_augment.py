"""Augmentation of batches on the training device: flip, RandAugment, colour jitter and random erasing.

The draws are those of `groupvit.transforms.TrainTransform`, so the images are those that it makes on a CPU, up to
rounding. The noise in erased rectangles is another: it is made on the device.

What depends on the draws is arranged on the CPU, by `Augmentation.of`. On a GPU, the host never waits: `augment` works
on the images of one operation at a time, and there are few kernels whatever the number of images.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from groupvit.augment import OPERATIONS
from groupvit.batched_operations import (
    auto_contrast_tables,
    blend,
    contrast_tables,
    equalize_tables,
    look_up,
    smoothed,
    transform,
    without_color,
)
from groupvit.finishing import normalize
from groupvit.noise import normal_noise

# The operations in the order in which a round works on them, in groups for which there is one computation.
_GROUPS: tuple[tuple[str, ...], ...] = (
    ("Invert", "PosterizeIncreasing", "SolarizeIncreasing", "SolarizeAdd", "BrightnessIncreasing"),
    ("AutoContrast",),
    ("Equalize",),
    ("ContrastIncreasing",),
    ("ColorIncreasing",),
    ("SharpnessIncreasing",),
    ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"),
)
_GROUP_OF = np.array([next(i for i, names in enumerate(_GROUPS) if name in names) for name in OPERATIONS] + [-1])
"""Group of each index in `OPERATIONS`; -1 for index -1, which is no operation."""


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Draws of B images, arranged for `augment` and `erase`. All tensors are on one device.

    Operations come in rounds: each image has at most one per round. Within a round, they are sorted by group.
    """

    flip: Tensor
    """bool [B]: whether the image is mirrored, before all else."""
    counts: tuple[tuple[int, ...], ...]
    """Number of images for each round and group."""
    places: Tensor
    """int64: place in the batch of the image of each operation."""
    arguments: Tensor
    """float32 [.,6]: the first is the factor of the operation, or all are the matrix of `transform`."""
    tables: Tensor
    """uint8 [.,256]: tables of the operations of the first group, for all channels."""
    boxes: Tensor
    """int64 [E,7], for each image that has a rectangle to erase: its place in the batch, top, left, height, width,
    number of erased pixels up to here, and the seed of the noise."""
    num_erased: int
    """Number of erased pixels."""

    @classmethod
    def of(cls, columns: Mapping[str, npt.NDArray[Any]]) -> "Augmentation":
        """Arrange, on the CPU, the columns of a slice.

        Args:
            columns: image uint8 [B,3,H,W], of which only the size is used, flip bool [B], erase_box [B,4], noise_seed
                int64 [B]; for R rounds, operations int8 [B,R], indices in `OPERATIONS` or -1 for none, and arguments
                float32 [B,R]. Without the last two, R is 0.
        """
        num_images, _, height, width = columns["image"].shape
        drawn = columns.get("operations", np.empty((num_images, 0), dtype=np.int8))
        counts, places, arguments, tables = [], [], [], []
        for round_index, indices in enumerate(drawn.T):
            groups = _GROUP_OF[indices]
            order = np.argsort(groups, kind="stable")[np.count_nonzero(groups < 0) :].tolist()
            counts.append(tuple(np.bincount(groups[order], minlength=len(_GROUPS)).tolist()))
            places += order
            for place in order:
                name, argument = OPERATIONS[indices[place]], float(columns["arguments"][place, round_index])
                arguments.append(_matrix(name, argument, height, width) if name in _GROUPS[-1] else [argument] * 6)
                if name in _GROUPS[0]:
                    tables.append(_table(name, argument))
        erased = np.flatnonzero(columns["erase_box"][:, 2])
        box = columns["erase_box"][erased].astype(np.int64)
        ends = np.cumsum(box[:, 2] * box[:, 3])
        boxes = np.column_stack([erased, box, ends, columns["noise_seed"][erased]])
        return cls(
            flip=torch.tensor(columns["flip"]),
            counts=tuple(counts),
            places=torch.tensor(places, dtype=torch.int64),
            arguments=torch.tensor(arguments, dtype=torch.float32).view(-1, 6),
            tables=torch.from_numpy(np.array(tables, dtype=np.uint8).reshape(-1, 256)),
            boxes=torch.from_numpy(boxes),
            num_erased=int(ends[-1]) if len(ends) else 0,
        )

    def map(self, function: Callable[[Tensor], Tensor]) -> "Augmentation":
        """Apply a function to each tensor, for example to copy it to another device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: function(x) for name, x in values.items() if isinstance(x, Tensor)})


@dataclass(frozen=True, kw_only=True)
class AugmentedImages:
    """Augmented images of a batch, before normalisation and erasing. All tensors are on one device."""

    pixels: Tensor
    """uint8 [B,3,H,W]."""
    augmentation: Augmentation

    def map(self, function: Callable[[Tensor], Tensor]) -> "AugmentedImages":
        """Apply a function to each tensor, for example to copy it to another device."""
        return AugmentedImages(pixels=function(self.pixels), augmentation=self.augmentation.map(function))

    def finished(self) -> Tensor:
        """Normalise and erase -> float32 [B,3,H,W]."""
        output = normalize(self.pixels)
        erase(output, self.augmentation)
        return output


def augment(images: Tensor, augmentation: Augmentation) -> Tensor:
    """Mirror images uint8 [B,3,H,W] and apply their operations. Returns a new tensor."""
    output = torch.where(augmentation.flip[:, None, None, None], images.flip(-1), images)
    counts = augmentation.counts
    sizes = [sum(groups) for groups in counts]
    for groups, places, arguments, tables in zip(
        counts,
        augmentation.places.split(sizes),
        augmentation.arguments.split(sizes),
        augmentation.tables.split([groups[0] for groups in counts]),
        strict=True,
    ):
        if len(places):
            changed = _apply(output.index_select(0, places), groups, arguments, tables)
            output.index_copy_(0, places, changed)
    return output


def erase(images: Tensor, augmentation: Augmentation) -> None:
    """Fill the rectangles of normalised images float32 [B,3,H,W] with standard normal noise, in place.

    The number at (channel, y, x) is number (channel · H + y) · W + x of the image's seed.
    """
    if not augmentation.num_erased:
        return
    _, channels, height, width = images.shape
    # Only erased pixels, 4 % of all: hashes of all pixels would take 8 bytes each, several times.
    pixels = torch.arange(augmentation.num_erased, device=images.device)
    owner = torch.searchsorted(augmentation.boxes[:, 5].contiguous(), pixels, right=True)
    place, top, left, box_height, box_width, end, seed = augmentation.boxes[owner].unbind(1)
    pixels = pixels - (end - box_height * box_width)
    within = (top + pixels // box_width) * width + left + pixels % box_width
    counters = within + torch.arange(channels, device=images.device)[:, None] * (height * width)
    places = counters + place * (channels * height * width)
    images.view(-1).index_copy_(0, places.view(-1), normal_noise(seed, counters).view(-1))


def _apply(images: Tensor, counts: Sequence[int], arguments: Tensor, tables: Tensor) -> Tensor:
    """Apply the operations of one round to their images, sorted by group."""
    _, stretched, equalized, contrasted, uncolored, sharpened, moved = images.split(counts)
    factors = arguments[:, 0].split(counts)
    by_table, blended = sum(counts[:4]), len(uncolored) + len(sharpened)
    changed = []
    if by_table:
        all_tables = [tables[:, None].expand(-1, 3, -1)]
        if len(stretched):
            all_tables.append(auto_contrast_tables(stretched))
        if len(equalized):
            all_tables.append(equalize_tables(equalized))
        if len(contrasted):
            all_tables.append(contrast_tables(contrasted, factors[3]))
        changed.append(look_up(images[:by_table], torch.cat(all_tables)))
    if blended:
        reduced = torch.cat([without_color(uncolored), smoothed(sharpened)])
        shares = torch.cat(factors[4:6])[:, None, None, None]
        changed.append(blend(reduced, images[by_table : by_table + blended], shares))
    if len(moved):
        changed.append(transform(moved, arguments[by_table + blended :]))
    return torch.cat(changed)


def _table(name: str, argument: float) -> npt.NDArray[np.uint8]:
    """Return the new value for each old one, [256], of an operation of the first group."""
    values = np.arange(256)
    if name == "Invert":
        table = 255 - values
    elif name == "PosterizeIncreasing":
        table = values & ~(2 ** (8 - int(argument)) - 1)
    elif name == "SolarizeIncreasing":
        table = np.where(values < argument, values, 255 - values)
    elif name == "SolarizeAdd":
        table = np.where(values < 128, np.minimum(values + int(argument), 255), values)
    else:
        assert name == "BrightnessIncreasing"
        table = np.clip(values.astype(np.float32) * np.float32(argument), 0, 255)
    return table.astype(np.uint8)


def _matrix(name: str, argument: float, height: int, width: int) -> list[float]:
    """Return the matrix of `transform` for an operation of the last group, as timm and Pillow define it."""
    if name == "ShearX":
        return [1, argument, 0, 0, 1, 0]
    if name == "ShearY":
        return [1, 0, 0, argument, 1, 0]
    if name == "TranslateXRel":
        return [1, 0, argument * width, 0, 1, 0]
    if name == "TranslateYRel":
        return [1, 0, 0, 0, 1, argument * height]
    assert name == "Rotate"
    cos, sin = math.cos(math.radians(argument)), math.sin(math.radians(argument))
    x, y = width / 2, height / 2  # the point that stays
    return [cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y]
