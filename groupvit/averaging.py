"""An average of a model's weights over the steps of training."""

import torch
from torch import Tensor, nn


@torch.no_grad()
def update_average(
    average: nn.Module, model: nn.Module, decay: float, step: int, skipped: Tensor | None = None
) -> None:
    """Move `average` towards `model`: an exponential moving average. A smaller decay forgets the first steps faster.

    Batch statistics are copied, because they are averages already. With `skipped` (bool or float 0-D) true, the average
    stays as it is; statistics do, too, because a skipped step has not changed the model's.
    """
    weight = torch.full((), 1 - min(decay, (1 + step) / (10 + step)), device=next(average.parameters()).device)
    if skipped is not None:
        weight = torch.where(skipped != 0, 0.0, weight)
    targets: list[Tensor] = list(average.parameters())
    sources: list[Tensor] = list(model.parameters())
    torch._foreach_lerp_(targets, sources, [weight] * len(targets))  # pyright: ignore[reportPrivateImportUsage]
    for target, source in zip(average.buffers(), model.buffers(), strict=True):
        target.copy_(source)
