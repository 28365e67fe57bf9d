"""Images as the windows that the image tower sees: cut, encoded in batches, each window once.

An image is seen at one or more scales, and mirrored if asked: each is a *view*, cut into overlapping windows. On GPUs
windows of several images go through the tower together. On CPUs only windows of one view do: how a matrix product and
the end of a vectorised loop are rounded there depends on the number of rows, so a batch of another composition would
change an image's last bits. This way they are a function of the image alone.

Shapes: G groups of the last stage, C channels, D channels of the shared space, H x W pixels, h x w image tokens.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from groupvit.config import Precision, SegmentationConfig
from groupvit.image_encoder import ImageFeatures
from groupvit.model import GroupViT
from groupvit.precision import autocast
from groupvit.prepacked import prepacked
from groupvit.transforms import resize_short_side, to_tensor

TOKENS_PER_PASS = 1024
"""Image tokens that make a pass of the tower efficient on CPUs; more at once only overflow the caches."""
WINDOWS_PER_PASS_ON_GPU = 32

Box = tuple[int, int, int, int]
"""top, bottom, left, right."""
Crop = tuple[Box, Tensor]
"""Where a window lies in its view, and its pixels [3, H, W], normalised."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """One window and what the tower made of it."""

    box: Box
    """Where it lies in the view."""
    pixels: Tensor
    """[3, H, W], normalised."""
    segments: Tensor
    """[S, D]: segment embeddings; without grouping, those of the image tokens."""
    embedding: Tensor
    """[D], of the whole window."""
    group_maps: tuple[Tensor, ...]
    """Per grouping stage [G_l, h, w]: how each image token is shared among the groups. Empty without grouping."""
    grid: tuple[int, int]
    """h, w."""


@dataclass(frozen=True, kw_only=True)
class View:
    """An image at one scale, mirrored or not."""

    size: tuple[int, int]
    """H, W of the resized image."""
    mirrored: bool
    windows: tuple[Window, ...]


def encode_views(
    model: GroupViT,
    images: Sequence[NDArray[np.uint8]],
    config: SegmentationConfig,
    *,
    batch_size: int | None = None,
    precision: Precision = "float32",
) -> list[tuple[View, ...]]:
    """The views of each image (uint8 [H, W, 3], RGB).

    `batch_size`: windows that go through the tower together on a GPU, from any of the images; None: 32. On CPUs it has
    no effect (see the module's docstring). `precision`: bfloat16 runs the tower in autocast, faster, with masks that
    differ a little.
    """
    shapes: list[tuple[int, tuple[int, int], bool, int]] = []
    crops: list[Crop] = []
    for index, image in enumerate(images):
        for scale in config.scales:
            resized = resized_image(image, config, model.config.image.patch_size, scale)
            size = (resized.shape[-2], resized.shape[-1])
            boxes = list(windows(*size, config.window, config.stride))
            for mirrored in (False, True) if config.flip else (False,):
                pixels = resized.flip(-1) if mirrored else resized
                crops += [(box, pixels[:, box[0] : box[1], box[2] : box[3]]) for box in boxes]
                shapes.append((index, size, mirrored, len(boxes)))
    groups, rest = [crops], iter(crops)
    if model.logit_scale.device.type == "cpu":
        groups, batch_size = [list(itertools.islice(rest, count)) for *_, count in shapes], None
    encoded = itertools.chain.from_iterable(
        _encode(model, group, grouping=config.grouping, batch_size=batch_size, precision=precision) for group in groups
    )
    views: list[list[View]] = [[] for _ in images]
    for index, size, mirrored, count in shapes:
        of_view = tuple(itertools.islice(encoded, count))
        views[index].append(View(size=size, mirrored=mirrored, windows=of_view))
    return [tuple(of_image) for of_image in views]


def encode_window(model: GroupViT, pixels: Tensor, *, grouping: bool = True) -> Window:
    """An image [3, H, W], normalised, sides multiples of the patch size, as a single window."""
    box = (0, pixels.shape[-2], 0, pixels.shape[-1])
    [window] = _encode(model, [(box, pixels)], grouping=grouping, batch_size=None, precision="float32")
    return window


def resized_image(image: NDArray[np.uint8], config: SegmentationConfig, patch_size: int, scale: float = 1.0) -> Tensor:
    """uint8 [H, W, 3] → normalised float [3, H', W'], of which windows can be cut.

    A side that is not cut into windows becomes a multiple of the patch size.
    """
    short_side = round(scale * (min(image.shape[:2]) if config.short_side is None else config.short_side))
    long_side = round(scale * config.max_long_side)
    resized = resize_short_side(image, short_side, max_long_side=long_side, antialias=config.antialias)
    if config.window is None or min(resized.shape[:2]) < config.window:
        resized = resize_short_side(
            image, short_side, max_long_side=long_side, multiple_of=patch_size, antialias=config.antialias
        )
    return to_tensor(resized)


def windows(height: int, width: int, side: int | None, stride: int) -> Iterator[Box]:
    """Boxes that cover the image; the last of a row or column is shifted inside."""
    if side is None:
        yield 0, height, 0, width
        return
    for row in range(max(math.ceil((height - side) / stride), 0) + 1):
        for column in range(max(math.ceil((width - side) / stride), 0) + 1):
            bottom, right = min(row * stride + side, height), min(column * stride + side, width)
            yield max(bottom - side, 0), bottom, max(right - side, 0), right


def group_maps(features: ImageFeatures) -> list[Tensor]:
    """For each grouping stage, how image tokens are shared among its groups: [B, G_l, h, w], summing to 1 over G_l.

    The map of stage l is the product of the noise-free soft assignments of stages 1 to l.
    """
    maps: list[Tensor] = []
    for logits in features.assignment_logits:
        assignment = logits.softmax(dim=1).float()
        maps.append(assignment @ maps[-1] if maps else assignment)
    return [stage.unflatten(-1, features.grid) for stage in maps]


@torch.inference_mode()
def _encode(
    model: GroupViT,
    crops: Sequence[Crop],
    *,
    grouping: bool,
    batch_size: int | None,
    precision: Precision,
) -> list[Window]:
    """The windows of crops, in their order."""
    device, patch_size = model.logit_scale.device, model.config.image.patch_size
    by_size: dict[torch.Size, list[int]] = {}
    for position, (_, pixels) in enumerate(crops):
        by_size.setdefault(pixels.shape, []).append(position)
    encoder = prepacked(model.image_encoder) if precision == "float32" else model.image_encoder
    encoded: dict[int, Window] = {}
    for (_, height, width), positions in by_size.items():
        at_once = batch_size
        if at_once is None:
            tokens = (height // patch_size) * (width // patch_size)
            at_once = max(TOKENS_PER_PASS // tokens, 1) if device.type == "cpu" else WINDOWS_PER_PASS_ON_GPU
        for start in range(0, len(positions), at_once):
            batch = positions[start : start + at_once]
            images = torch.stack([crops[position][1] for position in batch]).to(device)
            with autocast(device, precision):
                features = encoder(images).to_float32()
            maps = group_maps(features) if grouping else []
            embeddings = model.image_projector(features.pooled)
            if maps:
                segments = model.image_projector(features.segment_tokens)
            else:
                segments = model.embed_image_tokens(features.image_tokens)
            for row, position in enumerate(batch):
                box, pixels = crops[position]
                encoded[position] = Window(
                    box=box,
                    pixels=pixels,
                    segments=segments[row],
                    embedding=embeddings[row],
                    group_maps=tuple(stage[row] for stage in maps),
                    grid=features.grid,
                )
    return [encoded[position] for position in range(len(crops))]
