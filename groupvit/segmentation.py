"""Zero-shot segmentation: the groups of an image give the masks, the similarity of their embeddings to the class
embeddings gives the labels.

`SegmentationConfig()` is the protocol of the paper (appendix and released evaluation); every other value of a field is
an option of this project. Shapes: C classes, G groups of the last stage, N image tokens on an h x w grid, H x W pixels.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from groupvit.model import GroupViT, ImageEncoding
from groupvit.transforms import resize_short_side, to_tensor
from groupvit.zero_shot import classify


@dataclass(frozen=True, kw_only=True)
class SegmentationConfig:
    """How an image becomes a label per pixel. The defaults are the paper's protocol for PASCAL VOC."""

    short_side: int | None = 448
    """The image is resized to this short side, keeping its ratio; None leaves its size as it is."""
    max_long_side: int = 2048
    """The resize stops earlier where the long side would grow beyond this."""
    window: int | None = 448
    """Side of the sliding window whose scores are averaged; None segments the whole image at once."""
    stride: int = 224
    """Distance between windows."""
    templates: tuple[str, ...] = ("a photo of a {}.",)
    """Prompt templates; a class embedding is the mean over them."""
    background_threshold: float | None = 0.95
    """Pixels whose best class scores less are background. None: there is no background class."""
    background_prompts: tuple[str, ...] = ()
    """Words for the background (like "sky"): they compete as classes and count as background where they win."""
    top_classes: int | None = 5
    """Only this many classes, the best ones for the whole window, can appear in it; the affinity is the softmax over
    all classes times the one over these. None: all can, and the affinity is the softmax over all classes."""
    logit_scale: Literal["image_text", "multi_label"] = "image_text"
    """Which of the model's scales multiplies the cosines. `multi_label` suits models whose nouns were matched with
    segments in training: it is what those segments were scored by."""
    masks: Literal["hard", "soft"] = "hard"
    """hard: a pixel belongs to its best group alone. soft: its scores are the mean over groups by its assignment."""
    grouping: bool = True
    """False compares each image token with the classes and ignores the groups: a baseline that shows what they add."""
    scales: tuple[float, ...] = (1.0,)
    """Scores are averaged over the image resized by each of these, relative to `short_side`."""
    flip: bool = False
    """Whether scores are also averaged with those of the mirrored image."""

    def __post_init__(self) -> None:
        if self.window is not None and not 0 < self.stride <= self.window:
            raise ValueError(
                f"stride {self.stride} must be between 1 and the window of {self.window}, or pixels are skipped"
            )
        if self.background_threshold is None and self.background_prompts:
            raise ValueError(
                "background_prompts need a background class: set background_threshold (0.0 adds nothing to them)"
            )
        if self.top_classes is not None and self.top_classes < 1:
            raise ValueError(f"top_classes is {self.top_classes}: at least 1, or None for all classes")
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"scales are {self.scales}: one or more positive numbers are needed")


@dataclass(frozen=True)
class PixelScores:
    """What one window says, before the background rule."""

    classes: Tensor
    """[C, H, W] in [0, 1]."""
    background: Tensor | None
    """[H, W]: the best score of the background prompts; None without them."""
    ceiling: Tensor
    """0-D: the best class score of any group, also of groups that own no pixel."""

    def backgrounds(self, thresholds: Sequence[float]) -> Tensor:
        """What competes with the classes as the background, at each of T thresholds: [T, H, W].

        It is 1 where the best class stays below min(threshold, ceiling), so that the most certain group of a window
        always keeps its label; elsewhere it is 0, or the score of the background prompts.
        """
        limits = self.ceiling.clamp(max=self.classes.new_tensor(thresholds))
        uncertain = self.classes.amax(dim=0) < limits[:, None, None]
        elsewhere = torch.zeros_like(self.classes[0]) if self.background is None else self.background
        return torch.where(uncertain, 1.0, elsewhere)

    def logits(self, background_threshold: float | None) -> Tensor:
        """[C, H, W], or [C + 1, H, W] with the background first when there is a threshold."""
        if background_threshold is None:
            return self.classes
        return torch.cat([self.backgrounds([background_threshold]), self.classes])


def group_maps(encoding: ImageEncoding) -> list[Tensor]:
    """For each grouping stage, how image tokens are shared among its groups: [B, G_l, h, w], summing to 1 over G_l.

    The map of stage l is the product of the noise-free soft assignments of stages 1 to l.
    """
    maps: list[Tensor] = []
    for assignment in encoding.soft_assignments:
        maps.append(assignment.float() @ maps[-1] if maps else assignment.float())
    return [stage.unflatten(-1, encoding.features.grid) for stage in maps]


def affinity(
    segment_embeddings: Tensor,
    image_embedding: Tensor,
    class_embeddings: Tensor,
    logit_scale: Tensor,
    top_classes: int | None,
) -> Tensor:
    """How much each segment is of each class: [G, D], [D], [C, D] → [G, C] in [0, 1].

    The softmax over all classes times the softmax over the classes that are best for the whole image; the others get 0.
    Without `top_classes`, the first softmax alone.
    """
    logits = classify(segment_embeddings, class_embeddings, logit_scale)
    scores = logits.softmax(dim=-1)
    if top_classes is None:
        return scores
    num_allowed = min(top_classes, len(class_embeddings))
    best = classify(image_embedding, class_embeddings, logit_scale).topk(num_allowed).indices
    allowed = torch.zeros(len(class_embeddings), dtype=torch.bool, device=logits.device).index_fill(0, best, True)
    return scores * logits.masked_fill(~allowed, -math.inf).softmax(dim=-1)


def window_scores(
    model: GroupViT,
    window: Tensor,
    class_embeddings: Tensor,
    background_embeddings: Tensor | None,
    config: SegmentationConfig,
) -> PixelScores:
    """Scores the pixels of one window [1, 3, H, W], normalised, whose sides are multiples of the patch size."""
    encoding = model.encode_image(window)
    maps = group_maps(encoding) if config.grouping else []
    segments = (encoding.segment_embeddings if maps else model.embed_image_tokens(encoding.features))[0]
    scale = model.logit_scale if config.logit_scale == "image_text" else model.multi_label_logit_scale
    num_classes = len(class_embeddings)
    words = class_embeddings if background_embeddings is None else torch.cat([class_embeddings, background_embeddings])
    segment_scores = affinity(segments, encoding.embedding[0], words, scale, config.top_classes)
    size = window.shape[-2:]
    if not maps:
        scores = _resize(segment_scores.T.unflatten(-1, encoding.features.grid)[None], size)[0]
    elif config.masks == "hard":
        scores = segment_scores.T[:, _resize(maps[-1], size)[0].argmax(dim=0)]
    else:
        scores = torch.einsum("gc,ghw->chw", segment_scores, _resize(maps[-1], size)[0])
    return PixelScores(
        classes=scores[:num_classes],
        background=scores[num_classes:].amax(dim=0) if background_embeddings is not None else None,
        ceiling=segment_scores[:, :num_classes].max(),
    )


@torch.inference_mode()
def segment_logits(
    model: GroupViT,
    image: Tensor,
    class_embeddings: Tensor,
    background_threshold: float | None = 0.95,
    *,
    config: SegmentationConfig | None = None,
) -> Tensor:
    """Scores of one image taken as a single window.

    image: float [1, 3, H, W], normalised, H and W multiples of the patch size. class_embeddings: unit length [C, D],
    without the background. Returns [C, H, W] without a threshold, else [C + 1, H, W], background first. Of `config`
    only the options of a window are used.
    """
    scores = window_scores(model, image, class_embeddings, None, config or SegmentationConfig())
    return scores.logits(background_threshold)


@torch.inference_mode()
def predict(
    model: GroupViT,
    image: NDArray[np.uint8],
    class_embeddings: Tensor,
    config: SegmentationConfig,
    *,
    background_embeddings: Tensor | None = None,
    thresholds: Sequence[float | None] | None = None,
) -> list[NDArray[np.uint8]]:
    """Labels every pixel of an RGB image uint8 [H, W, 3]: one label map uint8 [H, W] per background threshold.

    Label 0 is the background and class i has label i + 1; without a threshold class i has label i. `thresholds`
    (default: the config's) share one pass through the model, as choosing among them on calibration images needs.
    """
    height, width = image.shape[:2]
    thresholds = (config.background_threshold,) if thresholds is None else thresholds
    limits = [threshold for threshold in thresholds if threshold is not None]
    total: Tensor | None = None  # the classes, then the background at each limit: only that depends on the threshold
    for scale in config.scales:
        resized = _prepare(model, image, config, scale)
        for mirrored in (False, True) if config.flip else (False,):
            pixels = resized.flip(-1) if mirrored else resized
            boxes = list(windows(pixels.shape[-2], pixels.shape[-1], config.window, config.stride))
            scored = [
                window_scores(
                    model, pixels[..., top:bottom, left:right], class_embeddings, background_embeddings, config
                )
                for top, bottom, left, right in boxes
            ]
            layers = [torch.cat([scores.classes, scores.backgrounds(limits)]) for scores in scored]
            average = _average(boxes, layers, pixels.shape[-2:])
            average = _resize((average.flip(-1) if mirrored else average)[None], (height, width))[0]
            total = average if total is None else total + average
    assert total is not None  # there is at least one scale
    best, labels = total[: len(class_embeddings)].max(dim=0)
    backgrounds = iter(total[len(class_embeddings) :])
    maps = [labels if limit is None else (labels + 1).masked_fill(next(backgrounds) >= best, 0) for limit in thresholds]
    return [labels.to(torch.uint8).cpu().numpy() for labels in maps]


@torch.inference_mode()
def predict_groups(model: GroupViT, image: NDArray[np.uint8], config: SegmentationConfig) -> list[NDArray[np.float32]]:
    """The soft group maps of the whole image, for pictures: per stage float32 [G_l, h, w] on the token grid."""
    pixels = _prepare(model, image, replace(config, window=None), 1.0)
    return [stage[0].cpu().numpy() for stage in group_maps(model.encode_image(pixels))]


def windows(height: int, width: int, side: int | None, stride: int) -> Iterator[tuple[int, int, int, int]]:
    """Boxes (top, bottom, left, right) that cover the image; the last of a row or column is shifted inside."""
    if side is None:
        yield 0, height, 0, width
        return
    for row in range(max(math.ceil((height - side) / stride), 0) + 1):
        for column in range(max(math.ceil((width - side) / stride), 0) + 1):
            bottom, right = min(row * stride + side, height), min(column * stride + side, width)
            yield max(bottom - side, 0), bottom, max(right - side, 0), right


def _prepare(model: GroupViT, image: NDArray[np.uint8], config: SegmentationConfig, scale: float) -> Tensor:
    """uint8 [H, W, 3] → normalised float [1, 3, H', W'] on the model's device.

    A side that is not cut into windows becomes a multiple of the patch size.
    """
    short_side = round(scale * (min(image.shape[:2]) if config.short_side is None else config.short_side))
    long_side = round(scale * config.max_long_side)
    resized = resize_short_side(image, short_side, max_long_side=long_side)
    if config.window is None or min(resized.shape[:2]) < config.window:
        patch_size = model.config.image.patch_size
        resized = resize_short_side(image, short_side, max_long_side=long_side, multiple_of=patch_size)
    return to_tensor(resized)[None].to(model.logit_scale.device)


def _average(boxes: Sequence[tuple[int, int, int, int]], logits: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """The mean over windows of their scores, [C, H, W]."""
    total = logits[0].new_zeros(len(logits[0]), *size)
    times = logits[0].new_zeros(*size)
    for (top, bottom, left, right), scores in zip(boxes, logits, strict=True):
        total[:, top:bottom, left:right] += scores
        times[top:bottom, left:right] += 1
    return total / times


def _resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, [B, C, h, w] → [B, C, *size]."""
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
