"""Finds perceptual hashes that differ in few bits. Pure functions of arrays."""

import itertools
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

UInt64 = npt.NDArray[np.uint64]

_HASH_BITS = 64
_CHUNK = 2048  # hashes compared with as many others at a time: 32 MB


def bands(hashes: UInt64, distance: int) -> Iterator[UInt64]:
    """Yields the bits of each of `distance` + 1 bands."""
    bounds = [round(_HASH_BITS * band / (distance + 1)) for band in range(distance + 2)]
    for low, high in itertools.pairwise(bounds):
        bits = np.uint64(2 ** (high - low) - 1) if high - low < _HASH_BITS else np.uint64(2**64 - 1)
        yield hashes >> np.uint64(low) & bits


def has_near(hashes: UInt64, distance: int) -> npt.NDArray[np.bool_]:
    """For each hash, whether another one differs from it in at most `distance` bits."""
    distinct, group, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    near = counts > 1
    for start in range(0, len(distinct), _CHUNK):
        some = distinct[start : start + _CHUNK]
        for other in range(0, start + 1, _CHUNK):
            close = np.bitwise_count(some[:, None] ^ distinct[None, other : other + _CHUNK]) <= distance
            if other == start:
                np.fill_diagonal(close, False)
            near[start : start + _CHUNK] |= close.any(axis=1)
            near[other : other + _CHUNK] |= close.any(axis=0)
    return near[group]


def near_a_kept_one(hashes: UInt64, distance: int) -> npt.NDArray[np.bool_]:
    """For each hash, in order, whether an earlier, kept one differs from it in at most `distance` bits. A hash that is
    near dropped ones only is kept. Takes some 30 µs per distinct hash.
    """
    distinct, firsts, group = np.unique(hashes, return_index=True, return_inverse=True)
    keys = np.stack(list(bands(distinct, distance)), axis=1).tolist()
    kept: defaultdict[tuple[int, int], _Hashes] = defaultdict(_Hashes)
    dropped = np.zeros(len(distinct), dtype=bool)
    for place in np.argsort(firsts).tolist():
        value = np.uint64(distinct[place])
        buckets = [kept[key] for key in enumerate(keys[place])]
        dropped[place] = any(bucket.has_near(value, distance) for bucket in buckets)
        if not dropped[place]:
            for bucket in buckets:
                bucket.add(value)
    result = dropped[group]
    # An equal, earlier hash is kept, or it is near a kept one, which is as near to this one.
    result[np.setdiff1d(np.arange(len(hashes)), firsts)] = True
    return result


class _Hashes:
    """Hashes that agree in a band, in a growing array."""

    __slots__ = ("_size", "_values")

    def __init__(self) -> None:
        self._values, self._size = np.empty(4, np.uint64), 0

    def add(self, value: np.uint64) -> None:
        if self._size == len(self._values):
            self._values = np.r_[self._values, self._values]
        self._values[self._size] = value
        self._size += 1

    def has_near(self, value: np.uint64, distance: int) -> bool:
        return self._size > 0 and bool((np.bitwise_count(self._values[: self._size] ^ value) <= distance).any())
