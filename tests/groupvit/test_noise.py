"""Noise by counting: against SplitMix64 in Python's integers, and against chance."""

import math

import pytest
import torch
from torch import Tensor

from groupvit.noise import CounterNoise, normal_noise, uniform_noise

STEP, ALL = 0x9E3779B97F4A7C15, 2**64 - 1
CPU = torch.device("cpu")


def split_mix(state: int) -> int:
    """One output of SplitMix64 as published."""
    z = state & ALL
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & ALL
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & ALL
    return z ^ (z >> 31)


def in_python(seed: int, counter: int) -> float:
    upper = split_mix(split_mix(seed + STEP) + (counter + 1) * STEP) >> 41
    return (2 * (upper ^ 2**22) + 1) / 2**24  # the uppermost bit is a sign


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63), 1234567890123456789])
def test_uniform_noise_is_split_mix(seed: int) -> None:
    assert split_mix(STEP) == 0xE220A8397B1DCDAF  # the generator's published first output for seed 0
    counters = [*range(200), 2**32, 2**40 + 1]
    expected = [in_python(seed, counter) for counter in counters]
    assert uniform_noise(torch.tensor(seed), torch.tensor(counters)).tolist() == expected
    noise = CounterNoise(seed, CPU)
    assert noise.uniform((200,)).tolist() == expected[:200]


def test_known_answers() -> None:
    uniform = uniform_noise(torch.tensor(7), torch.arange(3))
    assert uniform.tolist() == [0.2215082049369812, 0.14970427751541138, 0.049374282360076904]
    expected = torch.tensor([-0.7671095, -1.0377026, -1.6509510])
    torch.testing.assert_close(normal_noise(torch.tensor(7), torch.arange(3)), expected, rtol=0, atol=1e-5)


def test_normal_noise_is_the_quantile_of_uniform_noise() -> None:
    seed, counters = torch.tensor(3), torch.arange(100_000)
    exact = torch.special.ndtri(uniform_noise(seed, counters).double())
    torch.testing.assert_close(normal_noise(seed, counters).double(), exact, rtol=0, atol=1e-4)


def test_moments() -> None:
    counters = torch.arange(1_000_000)
    uniform = uniform_noise(torch.tensor(11), counters).double()
    assert 0 < uniform.min() < 1e-5 and 1 - 1e-5 < uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 5e-3 / math.sqrt(12) and abs(uniform.var() - 1 / 12) < 1e-3
    for shift in (1, 128, 32768):  # upper, middle and lower bits: each value as often as another
        values = (uniform * 256 * shift).long() % 256
        chi_square = ((values.bincount(minlength=256) - 1e6 / 256) ** 2).sum() / (1e6 / 256)
        assert abs(chi_square - 255) < 5 * math.sqrt(2 * 255)
    normal = normal_noise(torch.tensor(11), counters).double()
    assert abs(normal.mean()) < 5e-3 and abs(normal.var() - 1) < 5e-3 * math.sqrt(2)
    assert abs((normal**3).mean()) < 5e-3 * math.sqrt(15) and abs((normal**4).mean() - 3) < 5e-3 * math.sqrt(96)


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.double(), b.double()]))[0, 1])


@pytest.mark.parametrize("distance", [1, 2, 3, 224, 224 * 224, 2**20])
def test_neighbouring_numbers_are_independent(distance: int) -> None:
    counters = torch.arange(250_000)
    seeds = torch.arange(250_000)  # of one counter each
    for first, second in (
        (normal_noise(torch.tensor(5), counters), normal_noise(torch.tensor(5), counters + distance)),
        (normal_noise(torch.tensor(5), counters), normal_noise(torch.tensor(5 + distance), counters)),
        (normal_noise(seeds, torch.tensor(9)), normal_noise(seeds + distance, torch.tensor(9))),
        (normal_noise(seeds, torch.tensor(9)), normal_noise(seeds, torch.tensor(9 + distance))),
    ):
        assert abs(correlation(first, second)) < 5 / math.sqrt(250_000)
        assert abs(correlation(first.abs(), second.abs())) < 5 / math.sqrt(250_000)


def test_numbers_do_not_depend_on_how_they_are_made() -> None:
    seeds, counters = torch.tensor([[4], [2**62], [-9]]), torch.arange(1001)
    whole = uniform_noise(seeds, counters)
    assert whole.shape == (3, 1001) and whole.dtype == torch.float32
    assert torch.equal(torch.cat([uniform_noise(seeds, part) for part in counters.split(123)], dim=1), whole)
    assert torch.equal(torch.stack([uniform_noise(part, counters) for part in seeds]), whole)
    backwards = normal_noise(seeds.flip(0), counters.flip(0)).flip(0, 1)
    torch.testing.assert_close(backwards, normal_noise(seeds, counters), rtol=0, atol=1e-5)
    assert counters.tolist() == list(range(1001))  # the arguments are left alone


def test_draws_follow_each_other_and_never_overlap() -> None:
    noise = CounterNoise(2**64 + 21, CPU)
    parts = [noise.uniform(shape) for shape in ((2, 3, 4), (0,), (5,), ())]
    assert [tuple(part.shape) for part in parts] == [(2, 3, 4), (0,), (5,), ()]
    assert torch.equal(torch.cat([part.flatten() for part in parts]), CounterNoise(21, CPU).uniform((30,)))
    assert not torch.equal(CounterNoise(22, CPU).uniform((30,)), CounterNoise(21, CPU).uniform((30,)))
