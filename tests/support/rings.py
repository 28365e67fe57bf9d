"""Fills polygons along the edges of pixels, without the code that made them."""

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def filled(rings: Sequence[Sequence[Sequence[int]]], height: int, width: int) -> NDArray[np.bool_]:
    """Returns the pixels [H, W] inside an odd number of closed rings of (x, y)."""
    mask = np.zeros((height, width), dtype=bool)
    for ring in rings:
        for (x0, y0), (x1, y1) in itertools.pairwise(ring):
            assert (x0 == x1) != (y0 == y1), "edges are vertical or horizontal"
            if x0 == x1:
                mask[min(y0, y1) : max(y0, y1), x0:] ^= True
    return mask
