"""GroupViT: language-supervised segmentation (arXiv 2202.11094), in pure PyTorch."""

from groupvit import interop, losses, segmentation
from groupvit.checkpoint import load

__all__ = ["interop", "load", "losses", "segmentation"]
