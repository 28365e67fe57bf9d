"""Permutations of whole numbers, drawn from a key and computed without a table."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]

_NUM_ROUNDS = 8  # of the Feistel network; 4 make it pseudo-random with strong round functions, but ours is only a hash
_LEAST_HALF_BITS = 3  # with fewer bits, most of the possible orders of a small domain would never be drawn


def permute(values: IntArray, size: int, key: Sequence[int], *, inverse: bool = False) -> IntArray:
    """Maps `values` [N] in 0 … size-1 by a permutation of these numbers drawn from `key` (integers >= 0), or back.

    Applies a Feistel network over the next even number of bits until the result is in the domain again (Black and
    Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). It needs no table, so a value costs the same for any size.
    """
    half_bits = np.uint64(max(((size - 1).bit_length() + 1) // 2, _LEAST_HALF_BITS))
    mask = np.uint64((1 << int(half_bits)) - 1)
    round_keys = np.random.SeedSequence(list(key)).generate_state(_NUM_ROUNDS, np.uint64)
    images = values.astype(np.uint64)
    outside = np.arange(len(images))
    while len(outside):
        left, right = images[outside] >> half_bits, images[outside] & mask
        for round_key in reversed(round_keys) if inverse else round_keys:
            if inverse:
                left, right = right ^ (_mix(left ^ round_key) & mask), left
            else:
                left, right = right, left ^ (_mix(right ^ round_key) & mask)
        images[outside] = left << half_bits | right
        outside = outside[images[outside] >= size]
    return images.astype(np.int64)


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): each input bit affects each output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
