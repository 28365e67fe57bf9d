"""Which arithmetic a step uses: float32, or bfloat16 where it is safe (autocast), with float32 where sums need it."""

import torch
from torch import Tensor

from groupvit.config import Precision


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Context in which matrix products run in `precision`; parameters stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32, or as it is where that is already as wide."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
