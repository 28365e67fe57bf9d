"""Skipped steps: which, and that they leave nothing behind."""

import math

import torch

from groupvit.config import LossConfig, OptimizerConfig
from groupvit.optim import build_optimizer, set_learning_rate
from groupvit.step_guard import FEWEST, WINDOW, StepGuard
from groupvit.training import train_step
from tests.support.small_model import random_batch, small_model

CPU = torch.device("cpu")


def test_a_norm_far_above_the_median_is_skipped_once_there_is_a_median() -> None:
    guard = StepGuard(3.0, CPU)
    assert not any(guard.skips(torch.tensor(norm)) for norm in [100.0] + [1.0] * (FEWEST - 2))
    assert not guard.skips(torch.tensor(1e6))  # too few so far
    assert guard.skips(torch.tensor(3.1)) and not guard.skips(torch.tensor(3.0))
    assert guard.skips(torch.tensor(math.nan)) and guard.skips(torch.tensor(math.inf))
    assert (int(guard.num_skipped), int(guard.num_in_a_row)) == (3, 2)
    for _ in range(WINDOW):
        guard.skips(torch.tensor(2.0))
    assert guard.median() == 2.0 and int(guard.num_in_a_row) == 0


def test_without_a_ratio_only_what_is_not_finite_is_skipped() -> None:
    guard = StepGuard(None, CPU)
    assert [bool(guard.skips(torch.tensor(norm))) for norm in [1.0] * 20 + [1e30, math.nan]] == [False] * 21 + [True]


def test_a_guard_goes_on_from_its_state() -> None:
    norms = torch.rand(300, generator=torch.Generator().manual_seed(0)).exp() ** 4
    norms[200] = math.nan
    whole = StepGuard(2.0, CPU)
    expected = [bool(whole.skips(norm)) for norm in norms]
    assert 10 < sum(expected) < 200
    for cut in (5, 100, 201):
        first, second = StepGuard(2.0, CPU), StepGuard(2.0, CPU)
        found = [bool(first.skips(norm)) for norm in norms[:cut]]
        second.load(first.state())
        assert found + [bool(second.skips(norm)) for norm in norms[cut:]] == expected
        assert second.state() == whole.state()
    StepGuard(2.0, CPU).load({})  # a checkpoint of an earlier version


def test_a_skipped_step_leaves_weights_moments_and_statistics() -> None:
    model = small_model().train()
    optimizer = build_optimizer(model, OptimizerConfig())
    set_learning_rate(optimizer, 1e-3)

    def step(index: int, factor: float) -> dict[str, torch.Tensor]:
        batch = random_batch(4, index).map(lambda x: x * factor if x.is_floating_point() else x)
        return train_step(model, optimizer, [batch], loss=LossConfig(), seed=0, step=index, clip_grad_norm=5.0)

    def everything() -> list[torch.Tensor]:
        moments = [x for state in optimizer.state.values() for x in state.values()]
        return [x.detach().clone() for x in (*model.state_dict().values(), *moments)]

    assert not step(0, 1.0)["skipped"]
    before = everything()
    metrics = step(1, math.nan)
    assert metrics["skipped"] and metrics["loss"].isnan() and metrics["grad_norm"].isnan()
    assert all(torch.equal(x, y) for x, y in zip(everything(), before, strict=True))
    assert not step(2, 1.0)["skipped"]
    assert not all(torch.equal(x, y) for x, y in zip(everything(), before, strict=True))
