"""Differentiable collectives over an explicit process group. With `group=None` there is one worker, and each returns
its input.

They work with gloo (CPU) and with nccl. PyTorch's SyncBatchNorm does not: it rejects CPU tensors.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size(group: dist.ProcessGroup | None) -> int:
    """Number of workers in the group; 1 for None."""
    return 1 if group is None else dist.get_world_size(group)


def rank(group: dist.ProcessGroup | None) -> int:
    """Rank of this worker in the group; 0 for None."""
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
    """Concatenate the rows of all workers in rank order: [B,...] -> [W*B,...]. Every worker must have the same B.

    Differentiable: the gradient of a worker's rows is the sum over the losses of all workers.
    """
    return local if group is None else _AllGather.apply(local, group)  # type: ignore[return-value]


def all_reduce_sum(local: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Sum a tensor of any shape over workers. Differentiable: the gradient is summed over workers, too."""
    return local if group is None else _AllReduceSum.apply(local, group)  # type: ignore[return-value]
