"""Segmentation protocols: the settings of the paper, those of later work, and those that suit the model."""

from typing import Any

from groupvit.config import Protocol, SegmentationConfig, from_dict
from groupvit.model import GroupViT


def protocol_of(
    protocol: Protocol, model: GroupViT, state: dict[str, Any], *, with_pamr: bool = False
) -> SegmentationConfig:
    """Settings of a protocol. `state` is the checkpoint's: `model` uses the settings stored there, or derives some."""
    if protocol == "paper":
        return SegmentationConfig()
    if protocol == "unified":
        return unified_protocol(with_pamr=with_pamr)
    stored = state.get("config", {}).get("segmentation")
    if stored is not None:
        return from_dict(SegmentationConfig, stored)
    size = model.config.image.image_size
    return SegmentationConfig(short_side=2 * size, max_long_side=2048 * size // 224, window=2 * size, stride=size)


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
