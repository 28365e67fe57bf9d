"""The usual mistakes in evaluating zero-shot segmentation, each as a variant of the protocol that has only this one.

docs/evaluation.md has the list for readers. A mistake that a protocol or a data set cannot have is left out.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from groupvit.captions import SEGMENTATION_TEMPLATE_SETS
from groupvit.config import ImageEncoderConfig, SegmentationConfig
from groupvit.words import BACKGROUND
from pipelines.benchmarks.dataset import SegmentationDataset
from pipelines.evaluation.replacements import (
    bgr,
    bicubic,
    ignored_as_background,
    ignored_as_errors,
    mean_over_images,
    mean_without_background,
    normalised,
    scaled_twice,
    squeezed,
    with_hard_assignments,
    with_noise,
    without_scale,
)
from pipelines.evaluation.variants import Variant

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
THRESHOLDS = (0.35, 0.5, 0.9, 0.95)
"""Those of the GroupViT paper's text and of its released configurations, and that of the unified protocol."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mistake:
    """A variant with one mistake."""

    name: str
    right: str
    """What the protocol does."""
    mistaken: str
    """What is done instead."""
    variant: Variant


def mistakes_of(right: Variant, dataset: SegmentationDataset, image: ImageEncoderConfig) -> list[Mistake]:
    """Returns the mistakes that can be made with this protocol (`right`), data set and model."""
    mistakes = [
        *_of_size(right, image.image_size),
        *_of_colour(right),
        *_of_prompt(right, dataset),
        *_of_background(right),
        *_of_score(right),
        *(_of_masks(right) if right.segmentation.grouping and image.num_output_groups else []),
        *_of_windows(right, image.image_size),
        *_of_counting(right),
    ]
    return [mistake for mistake in mistakes if mistake.variant != right]


def _of_size(right: Variant, image_size: int) -> list[Mistake]:
    rules = right.segmentation
    size = "size as it is" if rules.short_side is None else f"short side {rules.short_side}"
    side = rules.short_side or rules.window or image_size
    small = image_size if image_size < side else side // 2
    changes = [
        ("square", size, f"squeezed to {side} x {side}", replace(right, prepare=partial(squeezed, side=side))),
        ("small square", size, f"squeezed to {small} x {small}", replace(right, prepare=partial(squeezed, side=small))),
        ("small image", size, f"short side {small}", _with(right, replace(rules, short_side=small))),
        (
            "antialiasing",
            "on" if rules.antialias else "off",
            "off" if rules.antialias else "on",
            _with(right, replace(rules, antialias=not rules.antialias)),
        ),
        ("bicubic", "bilinear", "bicubic", replace(right, prepare=bicubic)),
    ]
    return _mistakes(changes)


def _of_colour(right: Variant) -> list[Mistake]:
    half = (0.5, 0.5, 0.5)
    changes = [
        (name, "mean and std of ImageNet", mistaken, replace(right, prepare=partial(normalised, mean=mean, std=std)))
        for name, mistaken, mean, std in (
            ("CLIP's normalisation", "those of CLIP", CLIP_MEAN, CLIP_STD),
            ("normalisation 0.5", "0.5 and 0.5", half, half),
            ("no normalisation", "colours from 0 to 1", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        )
    ]
    return _mistakes([*changes, ("BGR", "red, green, blue", "blue, green, red", replace(right, prepare=bgr))])


def _of_prompt(right: Variant, dataset: SegmentationDataset) -> list[Mistake]:
    rules = right.segmentation
    simple, ensemble = SEGMENTATION_TEMPLATE_SETS["simple"], SEGMENTATION_TEMPLATE_SETS["full"]
    others = {"bare words": ("{}",), "single prompt": simple, "prompt ensemble": ensemble}
    if rules.templates == simple:
        others["no full stop"] = tuple(template.removesuffix(".") for template in simple)
    changes = [
        (name, _shown(rules.templates), _shown(templates), _with(right, replace(rules, templates=templates)))
        for name, templates in others.items()
        if templates != rules.templates
    ]
    names = tuple((name,) for name in dataset.classes if name != BACKGROUND)
    if names != right.words:
        ours, theirs = next(
            (words, name) for words, (name,) in zip(right.words, names, strict=True) if words != (name,)
        )
        changes.append(("benchmark's names", ", ".join(ours), theirs, replace(right, words=names)))
    return _mistakes(changes)


def _of_background(right: Variant) -> list[Mistake]:
    rules = right.segmentation
    if rules.background_threshold is None:
        return []
    threshold = f"threshold {rules.background_threshold}"
    changes = [
        (
            f"threshold {other}",
            threshold,
            f"threshold {other}",
            _with(right, replace(rules, background_threshold=other)),
        )
        for other in THRESHOLDS
        if other != rules.background_threshold
    ]
    changes.append(("no threshold", threshold, "no background", _with(right, replace(rules, background_threshold=0.0))))
    by_word = replace(rules, background_threshold=0.0, background_prompts=(BACKGROUND,))
    changes.append(("background as a word", threshold, f'a class "{BACKGROUND}"', _with(right, by_word)))
    kinds = {"below_threshold": "not the best group", "constant": "every group"}
    other = "constant" if rules.background_rule == "below_threshold" else "below_threshold"
    changed = _with(right, replace(rules, background_rule=other))
    changes.append(("background rule", f"{threshold}, {kinds[rules.background_rule]}", kinds[other], changed))
    return _mistakes(changes)


def _of_score(right: Variant) -> list[Mistake]:
    rules = right.segmentation
    every, some = "all classes", f"top {rules.top_classes or 5} of a window"
    gated, other = rules.top_classes is not None, 5 if rules.top_classes is None else None
    changes = [
        (
            "all classes" if gated else "five classes",
            some if gated else every,
            every if gated else some,
            _with(right, replace(rules, top_classes=other)),
        ),
        ("no logit scale", "cosine x logit scale", "cosine", replace(right, change_words=without_scale)),
        ("logit scale twice", "cosine x logit scale", "scaled twice", replace(right, change_words=scaled_twice)),
    ]
    return _mistakes(changes)


def _of_masks(right: Variant) -> list[Mistake]:
    rules = right.segmentation
    kinds = {"hard": "a pixel's best group", "soft": "mean over groups"}
    other = "soft" if rules.masks == "hard" else "hard"
    changes = [
        (f"{other} masks", kinds[rules.masks], kinds[other], _with(right, replace(rules, masks=other))),
        (
            "hard assignments",
            "soft ones multiplied",
            "hard ones multiplied",
            replace(right, encode=with_hard_assignments),
        ),
        ("training mode", "no noise", "Gumbel noise, dropped paths", replace(right, encode=with_noise)),
    ]
    return _mistakes(changes)


def _of_windows(right: Variant, image_size: int) -> list[Mistake]:
    rules = right.segmentation
    if rules.window is None:
        sliding = replace(rules, window=image_size, stride=max(image_size // 2, 1))
        return _mistakes([("sliding windows", "whole image", f"windows of {image_size}", _with(right, sliding))])
    windows = f"windows of {rules.window}, stride {rules.stride}"
    changes = [("whole image", windows, "whole image", _with(right, replace(rules, window=None)))]
    if rules.stride < rules.window:
        apart = _with(right, replace(rules, stride=rules.window))
        changes.append(("no overlap", windows, f"stride {rules.window}", apart))
    return _mistakes(changes)


def _of_counting(right: Variant) -> list[Mistake]:
    truth, ignored, mean = "prediction is resized", "ignored pixels left out", "over classes of all images"
    changes = [
        ("labels resized", truth, "labels are resized", replace(right, labels_at_model_size=True)),
        ("ignored as errors", ignored, "counted as errors", replace(right, count=ignored_as_errors)),
        ("mean over images", mean, "over images", replace(right, average=mean_over_images)),
    ]
    if right.segmentation.background_threshold is not None:
        as_background = replace(right, count=ignored_as_background)
        changes.append(("ignored as background", ignored, "counted as background", as_background))
        without = replace(right, average=mean_without_background)
        changes.append(("background left out", "over all classes", "without the background", without))
    return _mistakes(changes)


def _mistakes(changes: Sequence[tuple[str, str, str, Variant]]) -> list[Mistake]:
    return [
        Mistake(name=name, right=right, mistaken=mistaken, variant=variant)
        for name, right, mistaken, variant in changes
    ]


def _with(right: Variant, segmentation: SegmentationConfig) -> Variant:
    return replace(right, segmentation=segmentation)


def _shown(templates: Sequence[str]) -> str:
    return f'"{templates[0]}"' if len(templates) == 1 else f"{len(templates)} templates"
