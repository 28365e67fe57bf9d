"""Collectives over an explicit process group. With `group=None` there is one worker, and each returns its input.

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


def world_size(group: dist.ProcessGroup | None) -> int:
    """Number of workers in the group; 1 for None."""
    return 1 if group is None else dist.get_world_size(group)


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group, ctx.shape = group, local.shape
        return _gather_rows(local, group)

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


@dataclasses.dataclass(frozen=True)
class Gathered:
    """Some rows, and those of the whole global batch."""

    own: Tensor
    """[B,...]"""
    everyone: Tensor
    """[N,...], in order. May be the same tensor as `own`."""
    first: int
    """Index of the first own row in `everyone`."""

    def map(self, function: Callable[[Tensor], Tensor]) -> "Gathered":
        """Apply a function of rows; if all rows are own, only once."""
        own = function(self.own)
        return Gathered(own, own if self.everyone is self.own else function(self.everyone), self.first)


def gather(tensors: Sequence[Tensor], group: dist.ProcessGroup | None) -> list[Gathered]:
    """Gather the rows of several tensors, with gradient. They are in rank order."""
    return [Gathered(own, all_gather(own, group), rank(group) * len(own)) for own in tensors]


@dataclasses.dataclass(frozen=True)
class Slices:
    """How the slices of a global batch, its micro-batches, are divided among the workers: one by one, in turn.

    The number of workers may be any from 1 to the number of slices: some workers may have one slice more than others.
    """

    count: int
    """Number of slices of the global batch."""
    group: dist.ProcessGroup | None = None
    """The workers. None: this one alone."""
    first_rank: int = 0
    """Rank of the worker of slice 0."""

    @property
    def own(self) -> range:
        """Indices of this worker's slices, ascending."""
        size = world_size(self.group)
        return range((rank(self.group) - self.first_rank) % size, self.count, size)

    def gather(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Gather one row per slice: tensors [n,...] of the own slices, of one dtype -> [S,...] of all, in order.

        One collective for all the tensors.
        """
        if self.group is None:
            return list(tensors)
        flat = torch.cat([rows.reshape(len(rows), -1) for rows in tensors], dim=1)
        padding = flat.new_zeros(self._most - len(flat), flat.shape[1])
        everyone = _gather_rows(torch.cat([flat, padding]), self.group)[self._places(flat.device)]
        parts = everyone.split([rows[0].numel() for rows in tensors], dim=1)
        return [part.reshape(self.count, *rows.shape[1:]) for part, rows in zip(parts, tensors, strict=True)]

    def sum_to_owners(self, terms: Tensor) -> Tensor:
        """Add what all workers have for each slice: terms int64 [S,...] -> sums [n,...] of the own slices."""
        if self.group is None:
            return terms
        padded = terms.new_zeros(world_size(self.group) * self._most, *terms.shape[1:])
        padded[self._places(terms.device)] = terms
        sums = terms.new_empty(self._most, *terms.shape[1:])
        _reduce_scatter_single(sums, padded, group=self.group)
        return sums[: len(self.own)]

    @property
    def _most(self) -> int:
        """Largest number of slices of a worker."""
        return -(-self.count // world_size(self.group))

    def _places(self, device: torch.device) -> Tensor:
        """Place of each slice where every worker has room for the same number: [S]. Made on the device itself."""
        index = torch.arange(self.count, device=device)
        size = world_size(self.group)
        return (index + self.first_rank) % size * self._most + index // size


def _gather_rows(local: Tensor, group: dist.ProcessGroup) -> Tensor:
    gathered = local.new_empty(dist.get_world_size(group) * local.shape[0], *local.shape[1:])
    _all_gather_single(gathered, local.contiguous(), group=group)
    return gathered
