"""Collectives that carry gradients, over an explicit process group; with `group=None` each is the identity of one
worker.

They work on gloo (CPU) and nccl alike, unlike torch's SyncBatchNorm, which refuses CPU tensors.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size(group: dist.ProcessGroup | None) -> int:
    """Workers in the group; 1 without one."""
    return 1 if group is None else dist.get_world_size(group)


def rank(group: dist.ProcessGroup | None) -> int:
    """This worker's place in the group; 0 without one."""
    return 0 if group is None else dist.get_rank(group)


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group, ctx.num_rows = group, local.shape[0]
        local = local.contiguous()
        gathered = [torch.empty_like(local) for _ in range(dist.get_world_size(group))]
        dist.all_gather(gathered, local, group=group)
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        summed = grads[0].contiguous().clone()
        dist.all_reduce(summed, group=ctx.group)
        first = dist.get_rank(ctx.group) * ctx.num_rows
        return summed[first : first + ctx.num_rows], None


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        summed = local.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed, group=group)
        return summed

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        summed = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed, group=ctx.group)
        return summed, None


def all_gather(local: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Rows of all workers in the order of their ranks: [B,...] -> [W*B,...]; every worker has the same B.

    Differentiable: a worker's rows get the gradients of every worker's loss, summed.
    """
    return local if group is None else _AllGather.apply(local, group)  # type: ignore[return-value]


def all_reduce_sum(local: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Sum over workers, any shape; differentiable, the gradient is summed over workers as well."""
    return local if group is None else _AllReduceSum.apply(local, group)  # type: ignore[return-value]
