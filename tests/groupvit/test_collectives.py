"""Collectives of real processes: what they give, and their gradients."""

import warnings

import torch
import torch.distributed as dist

from groupvit.collectives import all_gather_together, gather
from tests.support.torch_workers import run_workers


def gathered(group: dist.ProcessGroup | None) -> dict[str, torch.Tensor]:
    """A worker's loss weighs every gathered row by (1 + rank) times its index, counted over both tensors."""
    rank = 0 if group is None else dist.get_rank(group)
    wide = torch.arange(12.0).view(3, 2, 2).add(100 * rank).requires_grad_()
    narrow = torch.arange(2.0).view(2, 1).add(100 * rank).requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        all_wide, all_narrow = all_gather_together([wide, narrow], group)
        loss = sum(row.sum() * index * (1 + rank) for index, row in enumerate([*all_wide, *all_narrow]))
        assert isinstance(loss, torch.Tensor)
        loss.backward()
        [keys] = gather([torch.tensor([2**62 + rank])], group)
    assert wide.grad is not None and narrow.grad is not None
    first = torch.tensor(keys.first)
    return {
        "all_wide": all_wide.detach(),
        "all_narrow": all_narrow.detach(),
        "wide": wide.grad,
        "narrow": narrow.grad,
        "keys": keys.everyone,
        "own_key": keys.own,
        "first": first,
    }


def test_rows_of_several_tensors_are_gathered_with_their_gradient() -> None:
    for rank, found in enumerate(run_workers(gathered, 2)):
        wide = torch.arange(12.0).view(3, 2, 2)
        assert torch.equal(found["all_wide"], torch.cat([wide, wide + 100]))
        assert torch.equal(found["all_narrow"], torch.tensor([[0.0], [1.0], [100.0], [101.0]]))
        indices = torch.arange(10.0) * 3  # both workers' weights: 1 and 2
        assert torch.equal(found["wide"], indices[3 * rank : 3 * rank + 3, None, None].expand(3, 2, 2))
        assert torch.equal(found["narrow"], indices[6 + 2 * rank : 8 + 2 * rank, None])
        assert found["keys"].tolist() == [2**62, 2**62 + 1]
        assert (found["own_key"].item(), found["first"].item()) == (2**62 + rank, rank)


def test_one_worker_keeps_its_tensors() -> None:
    tensors = [torch.ones(2, 3), torch.ones(2)]
    for found, tensor in zip(gather(tensors, None), tensors, strict=True):
        assert found.own is tensor and found.everyone is tensor and found.first == 0
        doubled = found.map(lambda x: 2 * x)
        assert doubled.own is doubled.everyone and torch.equal(doubled.own, 2 * tensor)
