"""Differentiable collectives over an explicit process group. With `group=None` there is one worker, and each returns
its input.

They work with gloo (CPU) and with nccl. PyTorch's SyncBatchNorm does not: it rejects CPU tensors.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# The names since torch 2.14, which warns at the older ones.
_all_gather_single = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter_single = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def rank(group: dist.ProcessGroup | None) -> int:
    """Rank of this worker in the group; 0 for None."""
    return 0 if group is None else dist.get_rank(group)


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group, ctx.shape = group, local.shape
        gathered = local.new_empty(dist.get_world_size(group) * local.shape[0], *local.shape[1:])
        _all_gather_single(gathered, local.contiguous(), group=group)
        return gathered

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        summed = grads[0].new_empty(ctx.shape)
        _reduce_scatter_single(summed, grads[0].contiguous(), group=ctx.group)
        return summed, None


def all_gather(local: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Concatenate the rows of all workers in rank order: [B,...] -> [W*B,...]. Every worker must have the same B.

    Differentiable: the gradient of a worker's rows is the sum over the losses of all workers.
    """
    return local if group is None else _AllGather.apply(local, group)  # type: ignore[return-value]


def all_gather_together(tensors: Sequence[Tensor], group: dist.ProcessGroup | None) -> tuple[Tensor, ...]:
    """Like `all_gather` of each tensor, in one collective. The tensors must have one dtype."""
    if group is None:
        return tuple(tensors)
    flat = all_gather(torch.cat([local.flatten() for local in tensors]), group).view(dist.get_world_size(group), -1)
    parts = flat.split([local.numel() for local in tensors], dim=1)
    return tuple(part.reshape(-1, *local.shape[1:]) for part, local in zip(parts, tensors, strict=True))


@dataclasses.dataclass(frozen=True)
class Gathered:
    """Rows of this worker and those of all workers."""

    own: Tensor
    """[B,...]"""
    everyone: Tensor
    """[WB,...] in rank order. With one worker, the same tensor as `own`."""
    first: int
    """Index of the first own row in `everyone`."""

    def map(self, function: Callable[[Tensor], Tensor]) -> "Gathered":
        """Apply a function of rows; if there is one worker, only once."""
        own = function(self.own)
        return Gathered(own, own if self.everyone is self.own else function(self.everyone), self.first)


def gather(tensors: Sequence[Tensor], group: dist.ProcessGroup | None) -> list[Gathered]:
    """Gather the rows of several tensors of one dtype in one collective, with gradient."""
    everyone = all_gather_together(tensors, group)
    return [Gathered(own, rows, rank(group) * len(own)) for own, rows in zip(tensors, everyone, strict=True)]
