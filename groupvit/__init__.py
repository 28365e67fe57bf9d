"""GroupViT: language-supervised segmentation (arXiv 2202.11094), in pure PyTorch."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from groupvit import interop, losses, segmentation
    from groupvit.checkpoint import load

__all__ = ["interop", "load", "losses", "segmentation"]


def __getattr__(name: str) -> Any:
    # Imports on first use, so that a process that needs only a config or a tokenizer does not spend seconds on PyTorch.
    if name == "load":
        return importlib.import_module("groupvit.checkpoint").load
    if name in __all__:
        return importlib.import_module(f"groupvit.{name}")
    raise AttributeError(f"module 'groupvit' has no attribute {name!r}")
