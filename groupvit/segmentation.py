"""Zero-shot segmentation: the groups of an image are its masks, labelled by the similarity of group embeddings to class
embeddings.

`SegmentationConfig()` is the paper's protocol for PASCAL VOC (appendix and released evaluation), `unified_protocol()`
that of later work.

Shapes: C classes, G groups of the last stage, N image tokens, H x W pixels, T thresholds, P background prompts.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from groupvit.config import Precision, SegmentationConfig
from groupvit.label_maps import best_groups, combined_hard, combined_soft, decide, full_maps, pixel_groups, resized_rows
from groupvit.model import GroupViT
from groupvit.pamr import refined
from groupvit.windows import View, Window, encode_views, encode_window
from groupvit.zero_shot import classify


@dataclass(frozen=True, kw_only=True)
class Words:
    """Embeddings of the classes to find in an image, and the scale of their scores."""

    classes: Tensor
    """[C, D] of unit length, without the background."""
    background: Tensor | None
    """[P, D]: embeddings of the background prompts; None without them."""
    logit_scale: Tensor
    """0-D, in log space."""

    @classmethod
    def of(cls, model: GroupViT, classes: Tensor, background: Tensor | None, config: SegmentationConfig) -> "Words":
        scale = model.logit_scale if config.logit_scale == "image_text" else model.multi_label_logit_scale
        return cls(classes=classes, background=background, logit_scale=scale)


@dataclass(frozen=True)
class PixelScores:
    """Scores of one window's pixels or groups, before the background rule."""

    classes: Tensor
    """[C, ...] in [0, 1]."""
    background: Tensor | None
    """[P, ...]: scores of the background prompts; None without them."""
    ceiling: Tensor
    """0-D: best class score of any group, including groups without pixels."""

    def mapped(self, function: Callable[[Tensor], Tensor]) -> "PixelScores":
        """Apply a function of scores [C, ...] to the scores of classes and background."""
        background = None if self.background is None else function(self.background)
        return PixelScores(function(self.classes), background, self.ceiling)

    def backgrounds(self, thresholds: Sequence[float], config: SegmentationConfig) -> Tensor:
        """Compute the score of the background, which competes with the classes, at each of T thresholds: [T, ...].

        Rule `below_threshold`: 1 where the best class score is below min(threshold, ceiling), so that the most certain
        group of a window always keeps its label; elsewhere 0, or the best score of the background prompts. Rule
        `constant`: the threshold, or the best score of the background prompts if that is higher.
        """
        elsewhere = torch.zeros_like(self.classes[0]) if self.background is None else self.background.amax(dim=0)
        limits = self.classes.new_tensor(thresholds).view(-1, *[1] * elsewhere.dim())
        if config.background_rule == "constant":
            return torch.maximum(limits, elsewhere)
        uncertain = self.classes.amax(dim=0) < limits.clamp(max=self.ceiling)
        return torch.where(uncertain, 1.0, elsewhere)

    def layers(self, thresholds: Sequence[float], config: SegmentationConfig) -> Tensor:
        """Stack the scores of the classes and of the background at each threshold: [C + T, ...]."""
        return torch.cat([self.classes, self.backgrounds(thresholds, config)])


def affinity(
    segment_embeddings: Tensor,
    image_embedding: Tensor,
    class_embeddings: Tensor,
    logit_scale: Tensor,
    top_classes: int | None,
) -> Tensor:
    """Affinity of each segment to each class: [G, D], [D], [C, D] → [G, C] in [0, 1].

    The softmax over all classes times the softmax over the `top_classes` best classes for the whole image; all other
    classes get 0. If `top_classes` is None, the first softmax alone.
    """
    logits = classify(segment_embeddings, class_embeddings, logit_scale)
    scores = logits.softmax(dim=-1)
    if top_classes is None:
        return scores
    num_allowed = min(top_classes, len(class_embeddings))
    best = classify(image_embedding, class_embeddings, logit_scale).topk(num_allowed).indices
    allowed = torch.zeros(len(class_embeddings), dtype=torch.bool, device=logits.device).index_fill(0, best, True)
    return scores * logits.masked_fill(~allowed, -math.inf).softmax(dim=-1)


def segment_scores(window: Window, words: Words, config: SegmentationConfig) -> PixelScores:
    """Score a window's segments (its groups, or its image tokens without grouping): [C, G] and [P, G].

    ValueError if a score or a group mask is not finite.
    """
    if window.group_maps and not window.group_maps[-1].isfinite().all():
        raise ValueError("the masks of the groups are not finite: use another checkpoint")
    texts = words.classes if words.background is None else torch.cat([words.classes, words.background])
    scores = affinity(window.segments, window.embedding, texts, words.logit_scale, config.top_classes).T
    num_classes = len(words.classes)
    return PixelScores(
        classes=scores[:num_classes],
        background=None if words.background is None else scores[num_classes:],
        ceiling=scores[:num_classes].max(),
    )


@torch.inference_mode()
def label(
    views: Sequence[View],
    words: Words,
    size: tuple[int, int],
    config: SegmentationConfig,
    thresholds: Sequence[float | None],
) -> list[NDArray[np.uint8]]:
    """Label every pixel of an image of this size: one label map uint8 [H, W] per background threshold.

    Label 0 is the background, and class i has label i + 1. With a threshold of None, class i has label i.
    """
    num_classes = len(words.classes)
    limits = [threshold for threshold in thresholds if threshold is not None]
    deciding = partial(decide, num_classes=num_classes, thresholds=thresholds)
    scores = [[segment_scores(window, words, config) for window in view.windows] for view in views]
    has_groups = bool(views[0].windows[0].group_maps)
    if has_groups and config.masks == "hard" and len(views) == 1 and config.pamr_iterations is None:
        groups = [pixel_groups(window) for window in views[0].windows]
        layers = [of_window.layers(limits, config) for of_window in scores[0]]
        labels = combined_hard(views[0], groups, layers, size, deciding)
    else:
        maps = [[_masks(window, config) for window in view.windows] for view in views]

        def layers_of_rows(view: int, window: int, top: int, bottom: int) -> Tensor:
            of_segments, masks = scores[view][window], maps[view][window]
            if masks is None:
                pixels = _scores_of_tokens(of_segments, views[view].windows[window], top, bottom)
            else:
                pixels = _mixed(of_segments, masks[:, top:bottom])
            return pixels.layers(limits, config)

        labels = combined_soft(views, layers_of_rows, num_classes + len(limits), size, deciding)
    return list(labels.cpu().numpy())


@torch.inference_mode()
def segment_logits(
    model: GroupViT,
    image: Tensor,
    class_embeddings: Tensor,
    background_threshold: float | None = 0.95,
    *,
    config: SegmentationConfig | None = None,
) -> Tensor:
    """Compute the scores of one image as a single window.

    Args:
        model: The model.
        image: float [1, 3, H, W], normalised, with H and W multiples of the patch size.
        class_embeddings: [C, D] of unit length, without the background.
        background_threshold: Threshold of the background rule; None: no background.
        config: Only the options for a single window are used; None: the paper's.

    Returns:
        [C, H, W] without a threshold, else [C + 1, H, W] with the background first.
    """
    config = config or SegmentationConfig()
    window = encode_window(model, image[0], grouping=config.grouping)
    scores = segment_scores(window, Words.of(model, class_embeddings, None, config), config)
    masks = _masks(window, config)
    pixels = _scores_of_tokens(scores, window, 0, image.shape[-2]) if masks is None else _mixed(scores, masks)
    if background_threshold is None:
        return pixels.classes
    return torch.cat([pixels.backgrounds([background_threshold], config), pixels.classes])


def predict(
    model: GroupViT,
    image: NDArray[np.uint8],
    class_embeddings: Tensor,
    config: SegmentationConfig,
    *,
    background_embeddings: Tensor | None = None,
    thresholds: Sequence[float | None] | None = None,
    precision: Precision = "float32",
) -> list[NDArray[np.uint8]]:
    """Label every pixel of an RGB image uint8 [H, W, 3].

    Args:
        model: The model.
        image: RGB image uint8 [H, W, 3].
        class_embeddings: [C, D] of unit length, without the background.
        config: The protocol.
        background_embeddings: [P, D], embeddings of the background prompts.
        thresholds: Background thresholds; None: the config's. They share one pass through the model, which makes it
            cheap to choose one on calibration images.
        precision: Precision of the image tower.

    Returns:
        One label map uint8 [H, W] per threshold. Label 0 is the background, and class i has label i + 1. With a
        threshold of None, class i has label i.
    """
    [views] = encode_views(model, [image], config, precision=precision)
    words = Words.of(model, class_embeddings, background_embeddings, config)
    tried = (config.background_threshold,) if thresholds is None else thresholds
    return label(views, words, (image.shape[0], image.shape[1]), config, tried)


def predict_groups(model: GroupViT, image: NDArray[np.uint8], config: SegmentationConfig) -> list[NDArray[np.float32]]:
    """Compute soft group maps of the whole image, for pictures: float32 [G_l, h, w] per stage, on the token grid."""
    [[view]] = encode_views(model, [image], replace(config, window=None, scales=(1.0,), flip=False))
    return [stage.cpu().numpy() for stage in view.windows[0].group_maps]


def _masks(window: Window, config: SegmentationConfig) -> Tensor | None:
    """Share of each pixel in each group, [G, H, W]; None without groups."""
    if not window.group_maps:
        return None
    maps = full_maps(window)
    if config.masks == "hard":
        maps = torch.zeros_like(maps).scatter_(0, best_groups(maps)[None], 1.0)
    if config.pamr_iterations is not None:
        maps = refined(window.pixels.to(maps.device), maps, config.pamr_iterations)
    return maps


def _mixed(scores: PixelScores, masks: Tensor) -> PixelScores:
    """Scores of segments → scores of pixels, by the masks of the segments [G, H, W]."""
    return scores.mapped(lambda of_segments: torch.einsum("cg,ghw->chw", of_segments, masks))


def _scores_of_tokens(scores: PixelScores, window: Window, top: int, bottom: int) -> PixelScores:
    """Scores of image tokens → scores of the pixels in these rows of the window (bilinear)."""
    size = (window.pixels.shape[-2], window.pixels.shape[-1])
    return scores.mapped(lambda of_tokens: resized_rows(of_tokens.unflatten(1, window.grid), size, top, bottom))
