"""Outlines of masks along the edges of pixels: polygons that cover the same pixels, and no more."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Ring = list[tuple[int, int]]
"""Corners (x, y), in pixels from the image's top left corner; y points down. The last one is the first."""


def outline(mask: NDArray[np.bool_]) -> list[list[Ring]]:
    """Returns the polygons of a mask bool [H, W]: for each, its outer ring and the rings of its holes.

    A polygon is one set of pixels that are connected by edges. Rings are simple: none touches itself, but rings may
    touch each other in a corner. The signed area of outer rings (in these x and y) is positive, that of holes negative,
    as RFC 7946 asks.
    """
    labelled: Any = ndimage.label(mask)  # connected by edges
    parts, num_parts = labelled
    outer: dict[int, Ring] = {}
    holes: dict[int, list[Ring]] = {}
    for ring, (row, column) in _rings(mask):
        part = int(parts[row, column])
        if _area(ring) > 0:
            outer[part] = ring
        else:
            holes.setdefault(part, []).append(ring)
    return [[outer[part], *holes.get(part, [])] for part in range(1, num_parts + 1)]


def _rings(mask: NDArray[np.bool_]) -> Iterator[tuple[Ring, tuple[int, int]]]:
    """Yields each ring, with the row and column of a pixel along it."""
    height, width = mask.shape
    padded = np.pad(mask, 1)
    inner = padded[1:-1, 1:-1]
    free = (
        inner & ~padded[:-2, 1:-1],  # the top edge goes right, and so on around the pixel
        inner & ~padded[1:-1, 2:],
        inner & ~padded[2:, 1:-1],
        inner & ~padded[1:-1, :-2],
    )
    stride = width + 1
    corners = (0, 1, stride + 1, stride)  # of a pixel, where its edge of each direction starts
    steps = np.array([1, stride, -1, -stride])
    num_corners = (height + 1) * stride
    # An edge's number is direction · num_corners + the corner at which it starts.
    edges, pixels = [], []
    for direction, is_free in enumerate(free):
        rows, columns = np.nonzero(is_free)
        edges.append(direction * num_corners + rows * stride + columns + corners[direction])
        pixels.append(rows * width + columns)
    edge, pixel = np.concatenate(edges), np.concatenate(pixels)
    order = np.argsort(edge)
    edge, pixel = edge[order], pixel[order]
    direction, start = np.divmod(edge, num_corners)
    end = start + steps[direction]
    following = np.full(len(edge), -1)
    for turn in (1, 0, 3):  # first around the own pixel: pixels that touch in a corner only are not connected
        wanted = (direction + turn) % 4 * num_corners + end
        place = np.searchsorted(edge, wanted)
        place[place == len(edge)] = 0
        found = (following < 0) & (edge[place] == wanted)
        following[found] = place[found]
    turns = (direction[following] != direction).tolist()  # at the edge's end
    next_edge, ends, pixel_of = following.tolist(), end.tolist(), pixel.tolist()
    seen = bytearray(len(edge))
    for first in range(len(next_edge)):
        if seen[first]:
            continue
        path: list[int] = []
        at: dict[int, int] = {}
        current = first
        while not seen[current]:
            seen[current] = 1
            if turns[current]:
                corner = ends[current]
                if corner in at:  # the path has been here: what lies between is a ring of its own
                    since = at[corner]
                    yield _ring(path[since:], stride), divmod(pixel_of[current], width)
                    for left in path[since + 1 :]:
                        del at[left]
                    del path[since + 1 :]
                else:
                    at[corner] = len(path)
                    path.append(corner)
            current = next_edge[current]
        yield _ring(path, stride), divmod(pixel_of[first], width)


def _ring(corners: list[int], stride: int) -> Ring:
    points = [(corner % stride, corner // stride) for corner in corners]
    return [*points, points[0]]


def _area(ring: Ring) -> int:
    """Returns twice the signed area."""
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in itertools.pairwise(ring))
