"""How images are segmented: the rules of the paper, of later work, or those that suit the model."""

from typing import Any

from groupvit.config import SegmentationConfig, from_dict
from groupvit.model import GroupViT
from groupvit.segmentation import unified_protocol
from pipelines.benchmarks.names import Protocol


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
