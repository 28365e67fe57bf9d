"""How images are segmented: by the settings of the paper, by those of later work, or by those that suit the model."""

from typing import Any

from groupvit.config import Protocol, SegmentationConfig, from_dict
from groupvit.model import GroupViT


def protocol_of(
    protocol: Protocol, model: GroupViT, state: dict[str, Any], *, with_pamr: bool = False
) -> SegmentationConfig:
    """How images are segmented: the paper's settings, those of later work, or those that suit the model."""
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
    """One protocol for all benchmarks (TCL, CVPR 2023): the paper's sizes and windows, every class may appear, and the
    background is a class of constant score, the same for all data sets: 0.5, with mask refinement 0.4.
    """
    return SegmentationConfig(
        top_classes=None,
        background_rule="constant",
        background_threshold=0.4 if with_pamr else 0.5,
        pamr_iterations=10 if with_pamr else None,
    )
