"""Gradients are summed over real processes in buckets, which are sent while the backward pass runs."""

from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn

from groupvit.config import ReducePrecision
from groupvit.gradients import GradientReducer
from tests.support.torch_workers import run_workers

WIDTH = 16
LAYER = WIDTH * WIDTH
"""Number of weights of a layer. Their bytes are the size of a bucket, and of the last one, too."""


class Model(nn.Module):
    """A chain of layers, two branches of other sizes, and parameters that the loss does not use."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.unused_scalar = nn.Parameter(torch.tensor(1.0))
            self.chain = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3)))
            self.unused = nn.Linear(WIDTH, WIDTH, bias=False)
            self.branches = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3 * WIDTH)])

    def loss(self, rank: int, part: int) -> Tensor:
        """A loss whose backward pass takes the branches in another order on another rank."""
        x = self.chain(torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(2 * rank + part)))
        branches = list(self.branches)
        return torch.stack([branch(x).square().mean() for branch in (branches if rank else branches[::-1])]).sum()


def plain_gradients(rank: int) -> dict[str, Tensor]:
    model = Model()
    for part in range(2):
        model.loss(rank, part).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def reduced(group: dist.ProcessGroup, precision: ReducePrecision) -> dict[str, Any]:
    """Two backward passes, of which the second is armed."""
    model, rank = Model(), dist.get_rank(group)
    events: list[str] = []

    def all_reduce(flat: Tensor, **options: Any) -> Any:
        events.append(f"{str(flat.dtype).removeprefix('torch.')} x {flat.numel()}")
        return send(flat, **options)

    send = dist.all_reduce
    with (
        mock.patch.object(dist, "all_reduce", all_reduce),
        mock.patch("groupvit.gradients.BUCKET_BYTES", 4 * LAYER),
        mock.patch("groupvit.gradients.LAST_BUCKET_BYTES", 4 * LAYER),
    ):
        reducer = GradientReducer(model.parameters(), group, 4, precision)
        model.loss(rank, 0).backward()
        reducer.add(list(model.parameters()))
        events.append("armed")
        reducer.arm(model.parameters())
        model.loss(rank, 1).backward()
        events.append("finish")
        losses = [torch.tensor(0.1 + rank), torch.tensor(0.3 + rank)]
        averages, right = reducer.finish({"loss": losses, "part": [torch.tensor(2.0 * rank)] * 2})
    return {
        "grads": {name: p.grad for name, p in model.named_parameters() if p.grad is not None},
        "events": events,
        "averages": averages,
        "right": right,
    }


PRECISIONS: tuple[ReducePrecision, ...] = ("exact", "float32", "bfloat16")


def all_precisions(group: dist.ProcessGroup) -> list[dict[str, Any]]:
    return [reduced(group, precision) for precision in PRECISIONS]


def test_workers_sum_their_gradients_in_buckets_while_the_backward_pass_runs() -> None:
    ranks = [plain_gradients(rank) for rank in range(2)]
    expected = {name: grad + ranks[1][name] for name, grad in ranks[0].items()}
    for results in run_workers(all_precisions, 2):
        for precision, found in zip(PRECISIONS, results, strict=True):
            sent = "int64" if precision == "exact" else precision
            during = [f"{sent} x {size}" for size in (3 * WIDTH, WIDTH + 3 * LAYER, LAYER)]
            # The parameter without a gradient holds up the buckets after it. The metrics are in the last one.
            last = "float32" if precision == "bfloat16" else sent
            after = [f"{sent} x {LAYER}", f"{sent} x {LAYER}", f"{last} x {LAYER + 3}"]
            assert found["events"] == ["armed", *during, "finish", *after]
            torch.testing.assert_close(found["averages"], {"loss": torch.tensor(0.7), "part": torch.tensor(1.0)})
            assert found["right"]
            assert found["grads"].keys() == expected.keys()
            for name, grad in expected.items():
                rounded = precision == "bfloat16" and name != "chain.0.weight"
                error = (found["grads"][name] - grad).abs().max() / grad.abs().max()
                assert (2**-14 < error < 2**-7) if rounded else (error < 1e-6), f"{precision}, {name}: {error:.1e}"


def with_one_bad_term(group: dist.ProcessGroup | None) -> list[bool]:
    """Whether the sums are right, if a worker's gradient, another one, or a loss is bad; and without any of it."""
    results = []
    for where in ("gradient", "embedding", "loss", "nowhere"):
        model, rank = Model(), 0 if group is None else dist.get_rank(group)
        reducer = GradientReducer(model.parameters(), group, 4)
        model.loss(rank, 0).backward()
        if rank == 0 and where == "gradient":
            gradient = model.get_parameter("chain.0.weight").grad
            assert gradient is not None
            gradient[3, 4] = torch.nan
        reducer.add(list(model.parameters()))
        if rank == 0 and where == "embedding":
            reducer.report(torch.tensor(False))
        loss = torch.inf if rank == 0 and where == "loss" else 1.0
        results.append(bool(reducer.finish({"loss": [torch.tensor(loss)] * 2})[1]))
    return results


def test_every_worker_learns_of_a_number_that_is_not_finite_or_too_large() -> None:
    for results in [with_one_bad_term(None), *run_workers(with_one_bad_term, 2)]:
        assert results == [False, False, False, True]


def test_one_worker_with_float_sums_keeps_its_gradients() -> None:
    model = Model()
    reducer = GradientReducer(model.parameters(), None, 1, "float32")
    model.loss(0, 0).backward()
    before = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    averages, right = reducer.finish({"loss": [torch.tensor(1.0)]})
    assert averages == {"loss": torch.tensor(1.0)} and right
    for parameter, grad in zip(model.parameters(), before, strict=True):
        assert (parameter.grad is None and grad is None) or torch.equal(parameter.grad, grad)  # type: ignore[arg-type]
