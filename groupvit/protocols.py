"""Segmentation protocols: the settings of the paper, those of later work, and those that suit the model."""

from typing import Any

from groupvit.config import Protocol, SegmentationConfig, from_dict
from groupvit.field_types import check_type
from groupvit.model import GroupViT

LONGEST_SIDE = 2**14
"""Largest size in pixels that a checkpoint may ask for."""


def protocol_of(
    protocol: Protocol, model: GroupViT, state: dict[str, Any], *, with_pamr: bool = False
) -> SegmentationConfig:
    """Settings of a protocol. `state` is the checkpoint's: `model` uses the settings stored there, or derives some."""
    if protocol == "paper":
        return SegmentationConfig()
    if protocol == "unified":
        return unified_protocol(with_pamr=with_pamr)
    config = state.get("config")
    stored = config.get("segmentation") if isinstance(config, dict) else None
    if stored is not None:
        return _stored(stored)
    size = model.config.image.image_size
    return SegmentationConfig(short_side=2 * size, max_long_side=2048 * size // 224, window=2 * size, stride=size)


def _stored(values: Any) -> SegmentationConfig:
    """Read the settings in a checkpoint's state. ValueError if they are corrupted, or ask for too large an image."""
    try:
        check_type(SegmentationConfig, values, "segmentation")
        config = from_dict(SegmentationConfig, values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"state.json: config.segmentation is corrupted ({error}): use another checkpoint") from None
    if not 0 < max(config.max_long_side, config.window or 0) <= LONGEST_SIDE:
        raise ValueError(
            f"state.json: config.segmentation has max_long_side={config.max_long_side} and window={config.window}, "
            f"more than {LONGEST_SIDE} pixels: use another checkpoint"
        )
    return config


def unified_protocol(*, with_pamr: bool = False) -> SegmentationConfig:
    """The same protocol for all benchmarks (TCL, CVPR 2023): the paper's sizes and windows, and all classes can appear.
    The background is a class with a constant score, the same for all data sets: 0.5, or 0.4 with mask refinement.
    """
    return SegmentationConfig(
        top_classes=None,
        background_rule="constant",
        background_threshold=0.4 if with_pamr else 0.5,
        pamr_iterations=10 if with_pamr else None,
    )
