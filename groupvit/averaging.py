"""An average of a model's weights over the steps of training."""

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move `average` towards `model`: an exponential moving average. A smaller decay forgets the first steps faster.

    Batch statistics are copied, because they are averages already.
    """
    decay = min(decay, (1 + step) / (10 + step))
    get_ema_multi_avg_fn(decay)(tuple(average.parameters()), tuple(model.parameters()), step)
    for target, source in zip(average.buffers(), model.buffers(), strict=True):
        target.copy_(source)
