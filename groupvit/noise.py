"""Sources of noise: torch's generators, and random numbers by counting, where number i of a seed is a hash of both.

torch's generators give other numbers on other GPUs, because they hand them out to threads. Those by counting are the
same on every device, for any shape and order in which they are made: uniform ones bit for bit, normal ones up to
rounding.

The hash is SplitMix64 (Steele, Lea and Flood: Fast splittable pseudorandom number generators, OOPSLA 2014). Number i
comes from output i of a SplitMix64 that starts at the first output for the seed. All steps are elementwise, and
torch.compile makes one kernel of them.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Uniform = Callable[[Sequence[int]], Tensor]
"""Draws a float32 tensor of a shape from [0, 1)."""
NoiseSource = Callable[[int, torch.device], Uniform]
"""Makes a source of random numbers from a seed, on a device."""


def generator_noise(seed: int, device: torch.device) -> Uniform:
    """Noise of torch's generator. On a GPU, its numbers depend on the kind of GPU."""
    generator = torch.Generator(device).manual_seed(seed)
    return lambda shape: torch.rand(tuple(shape), generator=generator, device=device)


def counter_noise(seed: int, device: torch.device) -> Uniform:
    """Noise that is the same on every device."""
    return CounterNoise(seed, device).uniform


def _wrapped(value: int) -> int:
    """Return the int64 that equals `value` modulo 2^64."""
    return (value + 2**63) % 2**64 - 2**63


_STEP = _wrapped(0x9E3779B97F4A7C15)
_FACTORS = _wrapped(0xBF58476D1CE4E5B9), _wrapped(0x94D049BB133111EB)


def uniform_noise(seeds: Tensor, counters: Tensor) -> Tensor:
    """Return uniform numbers, float32 in (0, 1): odd multiples of 2^-24, so neither 0 nor 1 is among them.

    Args:
        seeds: int64.
        counters: int64, of a shape that can be broadcast with that of `seeds`.
    """
    return _uniform(_states(seeds, counters))


def normal_noise(seeds: Tensor, counters: Tensor) -> Tensor:
    """Return standard normal numbers, float32, of up to 5.3: the quantiles at `uniform_noise`. Arguments as there."""
    centred = _centred(_states(seeds, counters)).mul_(2.0**-22).add_(2.0**-23)  # 2 u - 1 without rounding
    return centred.erfinv_().mul_(math.sqrt(2))


class CounterNoise:
    """The numbers of one seed, one draw after the other.

    Args:
        seed: Any integer. Seeds that are equal modulo 2^64 give the same numbers.
        device: Where the numbers are made.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.device = device
        self._seed = torch.full((), _wrapped(seed), device=device)
        self._next = 0

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Return the next numbers of `uniform_noise`, of this shape."""
        first, self._next = self._next, self._next + math.prod(shape)
        return uniform_noise(self._seed, torch.arange(first, self._next, device=self.device)).view(tuple(shape))


def _states(seeds: Tensor, counters: Tensor) -> Tensor:
    """Return the states of SplitMix64 from which the numbers come."""
    keys = _mixed(seeds + _STEP)
    keys = keys ^ _shifted(keys, 31)
    return torch.add(keys + _STEP, counters, alpha=_STEP)


def _uniform(states: Tensor) -> Tensor:
    return _centred(states).mul_(2.0**-23).add_(0.5 + 2.0**-24)  # without rounding


def _centred(states: Tensor) -> Tensor:
    """Return the upper 23 bits of the outputs as signed numbers, float32 from -2^22 to 2^22 - 1."""
    return (_mixed(states) >> 41).to(torch.float32)


def _mixed(states: Tensor) -> Tensor:
    """Return SplitMix64's outputs, but for the lower 31 bits, with which the upper ones are still to be combined."""
    states = (states ^ _shifted(states, 30)) * _FACTORS[0]
    return (states ^ _shifted(states, 27)) * _FACTORS[1]


def _shifted(values: Tensor, bits: int) -> Tensor:
    """Shift to the right with zeros; torch's shift repeats the sign."""
    return (values >> bits) & (2 ** (64 - bits) - 1)
