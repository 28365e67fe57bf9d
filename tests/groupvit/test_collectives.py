"""Collectives of real processes: what they give, and their gradients."""

import warnings

import torch
import torch.distributed as dist

from groupvit.collectives import Slices, gather
from tests.support.torch_workers import run_workers


def gathered(group: dist.ProcessGroup | None) -> dict[str, torch.Tensor]:
    """A worker's loss weighs every gathered row by (1 + rank) times its index."""
    rank = 0 if group is None else dist.get_rank(group)
    rows = torch.arange(12.0).view(3, 2, 2).add(100 * rank).requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        [found] = gather([rows], group)
        loss = sum(row.sum() * index * (1 + rank) for index, row in enumerate(found.everyone))
        assert isinstance(loss, torch.Tensor)
        loss.backward()
        [keys] = gather([torch.tensor([2**62 + rank])], group)
    assert rows.grad is not None
    return {
        "everyone": found.everyone.detach(),
        "gradient": rows.grad,
        "keys": keys.everyone,
        "own_key": keys.own,
        "first": torch.tensor(found.first),
    }


def test_rows_are_gathered_with_their_gradient() -> None:
    for rank, found in enumerate(run_workers(gathered, 2)):
        rows = torch.arange(12.0).view(3, 2, 2)
        assert torch.equal(found["everyone"], torch.cat([rows, rows + 100]))
        indices = torch.arange(6.0) * 3  # both workers' weights: 1 and 2
        assert torch.equal(found["gradient"], indices[3 * rank : 3 * rank + 3, None, None].expand(3, 2, 2))
        assert found["keys"].tolist() == [2**62, 2**62 + 1]
        assert (found["own_key"].item(), found["first"].item()) == (2**62 + rank, 3 * rank)


def test_one_worker_keeps_its_tensors() -> None:
    tensors = [torch.ones(2, 3), torch.ones(2)]
    for found, tensor in zip(gather(tensors, None), tensors, strict=True):
        assert found.own is tensor and found.everyone is tensor and found.first == 0
        doubled = found.map(lambda x: 2 * x)
        assert doubled.own is doubled.everyone and torch.equal(doubled.own, 2 * tensor)


def shared_out(group: dist.ProcessGroup) -> list[dict[str, list[float]]]:
    """Five slices on these workers, the first on each of them: what every worker has, and what it gets."""
    results = []
    for first_rank in range(dist.get_world_size(group)):
        slices = Slices(5, group, first_rank)
        own = torch.tensor(list(slices.own), dtype=torch.float32)
        wide, narrow = slices.gather([own[:, None] * 10 + torch.arange(2), own])
        terms = torch.arange(5)[:, None] * 100 + dist.get_rank(group)
        sums = slices.sum_to_owners(terms)
        results.append({"own": own.tolist(), "wide": wide.tolist(), "narrow": narrow.tolist(), "sums": sums.tolist()})
    return results


def test_slices_are_shared_out_in_turn_and_gathered_in_order() -> None:
    for size in (2, 3, 5):
        results = run_workers(shared_out, size)
        for first_rank in range(size):
            for rank, found in enumerate(results):
                part = found[first_rank]
                assert part["own"] == [index for index in range(5) if (index + first_rank) % size == rank]
                assert part["narrow"] == [0, 1, 2, 3, 4]
                assert part["wide"] == [[10 * index, 10 * index + 1] for index in range(5)]
                assert part["sums"] == [[100 * index * size + sum(range(size))] for index in part["own"]]
