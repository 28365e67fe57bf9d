"""Encodes the windows of images in batches with the image tower.

An image is encoded at one or more scales, and optionally also mirrored. Each of these is a *view*, which is cut into
overlapping windows. On GPUs, a batch can have windows of several images. On CPUs, it has windows of one view only:
there the rounding of matrix products and of the end of vectorised loops depends on the number of rows, so the last bits
of an image's result would depend on the other images in its batch. This way they depend on the image alone.

Shapes: G groups of the last stage, C channels, D channels of the shared space, H x W pixels, h x w image tokens.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from groupvit.config import Precision, SegmentationConfig
from groupvit.finishing import to_tensor
from groupvit.image_encoder import ImageFeatures
from groupvit.model import GroupViT
from groupvit.precision import autocast
from groupvit.resizing import Box, resized_pixels, windows

TOKENS_PER_PASS = 1024
"""Number of image tokens per pass of the tower on CPUs. More do not make it faster, since they overflow the caches."""
WINDOWS_PER_PASS_ON_GPU = 32

Crop = tuple[Box, Tensor]
"""Position of a window in its view, and its pixels [3, H, W], normalised."""
Prepare = Callable[[NDArray[np.uint8], SegmentationConfig, int, float], Tensor]
"""(image uint8 [H, W, 3], protocol, patch size, scale) → pixels of the view float [3, H', W'], normalised."""
Encode = Callable[[GroupViT, Tensor], ImageFeatures]
"""(model, windows float [B, 3, H, W]) → features."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """One window and its encoding."""

    box: Box
    """Position in the view."""
    pixels: Tensor
    """[3, H, W], normalised."""
    segments: Tensor
    """[S, D]: segment embeddings, or embeddings of the image tokens without grouping."""
    embedding: Tensor
    """[D]: embedding of the whole window."""
    group_maps: tuple[Tensor, ...]
    """[G_l, h, w] per grouping stage: share of each image token in each group. Empty without grouping."""
    grid: tuple[int, int]
    """(h, w)."""


@dataclass(frozen=True, kw_only=True)
class View:
    """An image at one scale, mirrored or not."""

    size: tuple[int, int]
    """(H, W) of the resized image."""
    mirrored: bool
    windows: tuple[Window, ...]


def resized_image(image: NDArray[np.uint8], config: SegmentationConfig, patch_size: int, scale: float = 1.0) -> Tensor:
    """Resize and normalise an image for cutting into windows: uint8 [H, W, 3] → float32 [3, H', W']."""
    return to_tensor(resized_pixels(image, config, patch_size, scale))


def encode_image(model: GroupViT, pixels: Tensor) -> ImageFeatures:
    """Encode images float [B, 3, H, W], normalised, with the image tower: without noise."""
    return model.image_encoder(pixels)


def encode_views(
    model: GroupViT,
    images: Sequence[NDArray[np.uint8]],
    config: SegmentationConfig,
    *,
    batch_size: int | None = None,
    precision: Precision = "float32",
    prepare: Prepare = resized_image,
    encode: Encode = encode_image,
) -> list[tuple[View, ...]]:
    """Encode the views of each image (uint8 [H, W, 3], RGB).

    Args:
        model: The model.
        images: RGB images uint8 [H, W, 3].
        config: The protocol: sizes, windows, scales and mirroring.
        batch_size: Number of windows, of any images, per pass of the tower on a GPU. None: 32. Ignored on CPUs (see the
            module docstring).
        precision: bfloat16 runs the tower in autocast, which is faster and changes masks slightly.
        prepare: Resizes and normalises an image. Another function than the default is not a protocol.
        encode: Runs the image tower. As for `prepare`.
    """
    resized = [resized_views(image, config, model.config.image.patch_size, prepare) for image in images]
    return encode_resized(model, resized, config, batch_size=batch_size, precision=precision, encode=encode)


def resized_views(
    image: NDArray[np.uint8], config: SegmentationConfig, patch_size: int, prepare: Prepare = resized_image
) -> list[Tensor]:
    """Resize and normalise an image: uint8 [H, W, 3] → for each scale, float32 [3, H', W']."""
    return [prepare(image, config, patch_size, scale) for scale in config.scales]


def encode_resized(
    model: GroupViT,
    images: Sequence[Sequence[Tensor]],
    config: SegmentationConfig,
    *,
    batch_size: int | None = None,
    precision: Precision = "float32",
    encode: Encode = encode_image,
) -> list[tuple[View, ...]]:
    """Encode the views of images that `resized_views` has resized. Arguments as of `encode_views`."""
    shapes: list[tuple[int, tuple[int, int], bool, int]] = []
    crops: list[Crop] = []
    for index, scales in enumerate(images):
        for resized in scales:
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
        _encode(model, group, encode, grouping=config.grouping, batch_size=batch_size, precision=precision)
        for group in groups
    )
    views: list[list[View]] = [[] for _ in images]
    for index, size, mirrored, count in shapes:
        of_view = tuple(itertools.islice(encoded, count))
        views[index].append(View(size=size, mirrored=mirrored, windows=of_view))
    return [tuple(of_image) for of_image in views]


def encode_window(model: GroupViT, pixels: Tensor, *, grouping: bool = True) -> Window:
    """Encode an image [3, H, W], normalised, as a single window. Its sides must be multiples of the patch size."""
    box = (0, pixels.shape[-2], 0, pixels.shape[-1])
    [window] = _encode(model, [(box, pixels)], encode_image, grouping=grouping, batch_size=None, precision="float32")
    return window


def group_maps(features: ImageFeatures) -> list[Tensor]:
    """Share of each image token in the groups of each stage: [B, G_l, h, w] per grouping stage, summing to 1 over G_l.

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
    encode: Encode,
    *,
    grouping: bool,
    batch_size: int | None,
    precision: Precision,
) -> list[Window]:
    """Encode crops and return their windows in the same order."""
    device, patch_size = model.logit_scale.device, model.config.image.patch_size
    by_size: dict[torch.Size, list[int]] = {}
    for position, (_, pixels) in enumerate(crops):
        by_size.setdefault(pixels.shape, []).append(position)
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
                features = encode(model, images).to_float32()
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
