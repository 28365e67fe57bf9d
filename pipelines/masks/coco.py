"""COCO's masks: run lengths, as numbers or as text, and polygons. The same pixels as those of pycocotools 2.0.11."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MAX_POINTS = 2**26
"""Largest number of points on the outlines of one object, at five times the resolution of its image."""
_SCALE = 5  # pycocotools draws outlines at five times the resolution


def encode_mask(mask: NDArray[np.bool_]) -> str:
    """Encodes a mask bool [H, W] as the text of COCO's run-length encoding (`counts`); see `decode_mask`."""
    flat = mask.T.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=False))  # the first run is of 0, and may be empty
    runs = np.diff(starts, prepend=0, append=flat.size)
    values = runs.copy()
    values[3:] -= runs[1:-2]
    return _text(values)


def decode_mask(counts: str | Sequence[int], height: int, width: int) -> NDArray[np.bool_]:
    """COCO's run-length encoding → bool [H, W]. Raises ValueError if its runs do not add up to the mask's size.

    Runs of 0 and of 1 alternate down the columns. As text, a run is written in units of 5 bits, lowest first, each as
    the character 48 + unit, plus 32 if more follow. The highest bit of the last unit is the sign. From the fourth run
    on, the number is the difference to the last run but one.
    """
    runs = _read_runs(counts) if isinstance(counts, str) else counts
    if min(runs, default=0) < 0 or sum(runs) != height * width:
        raise ValueError(f"a mask of {height}×{width} has runs that do not add up to it")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def fill_polygons(polygons: Sequence[Sequence[float]], height: int, width: int) -> NDArray[np.bool_]:
    """Draws the union of polygons, each x, y, x, y, ... in pixels, as bool [H, W].

    Raises ValueError for a polygon of less than three points, for points that are not finite or are further from the
    image than its longer side, and for outlines of more than `MAX_POINTS`.
    """
    mask = np.zeros((height, width), dtype=bool)
    num_points = 0
    for polygon in polygons:
        if len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f"a polygon has {len(polygon)} numbers: give x and y of three points or more")
        points = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
        furthest = max(height, width)
        if not np.isfinite(points).all() or (points < -furthest).any() or (points > 2 * furthest).any():
            raise ValueError(f"a polygon has points far outside the image of {width}×{height} pixels: give pixels")
        corners = np.trunc(_SCALE * points + 0.5).astype(np.int64)
        corners = np.concatenate([corners, corners[:1]])
        num_points += int(np.abs(np.diff(corners, axis=0)).max(axis=1).sum()) + len(points)
        if num_points > MAX_POINTS:
            raise ValueError(f"its polygons have outlines of more than {MAX_POINTS:,} points: simplify them")
        mask |= _filled(corners, height, width)
    return mask


def box_of(mask: NDArray[np.bool_]) -> list[int]:
    """Returns COCO's bounding box (x, y, width, height) of a mask bool [H, W] that is not empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top]


def _text(values: NDArray[np.int64]) -> str:
    """Writes each number in units of 5 bits; see `decode_mask`."""
    units: list[NDArray[np.int64]] = []
    used: list[NDArray[np.bool_]] = []
    alive = np.ones(len(values), dtype=bool)
    rest = values
    while alive.any():
        unit, rest = rest & 31, rest >> 5  # the shift keeps the sign
        more = alive & np.where(unit & 16, rest != -1, rest != 0)
        units.append(unit + np.where(more, 32, 0) + 48)
        used.append(alive)
        alive = more
    return np.stack(units, axis=1)[np.stack(used, axis=1)].astype(np.uint8).tobytes().decode("ascii")


def _read_runs(text: str) -> list[int]:
    runs: list[int] = []
    value, shift = 0, 0
    for character in text:
        unit = ord(character) - 48
        if not 0 <= unit < 64 or shift > 30:
            raise ValueError(f"a mask's run-length encoding holds {character!r} where none can be")
        value |= (unit & 31) << shift
        shift += 5
        if unit & 32:
            continue
        if unit & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value, shift = 0, 0
    if shift:
        raise ValueError("a mask's run-length encoding ends within a number")
    return runs


def _filled(corners: NDArray[np.int64], height: int, width: int) -> NDArray[np.bool_]:
    """Fills a closed polygon [K + 1, 2] of five times the resolution, by the rule of pycocotools' `rleFrPoly`."""
    lines = [_line(*start, *end) for start, end in zip(corners[:-1].tolist(), corners[1:].tolist(), strict=True)]
    u, v = (np.concatenate(part) for part in zip(*lines, strict=True))
    crossing = u[1:] != u[:-1]  # where the outline enters another column of the fine grid
    x = (np.minimum(u[1:], u[:-1])[crossing] + 0.5) / _SCALE - 0.5
    y = (np.minimum(v[1:], v[:-1])[crossing] + 0.5) / _SCALE - 0.5
    inside = (np.floor(x) == x) & (x >= 0) & (x <= width - 1)  # at the centres of columns of pixels
    rows = np.ceil(np.clip(y[inside], 0, height)).astype(np.int64)
    positions = x[inside].astype(np.int64) * height + rows
    toggles = np.bincount(positions, minlength=height * width)[: height * width]
    return (np.cumsum(toggles) % 2 == 1).reshape(width, height).T


def _line(x0: int, y0: int, x1: int, y1: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the points of a line on the fine grid, one per step along its longer side, from start to end."""
    dx, dy = abs(x1 - x0), abs(y1 - y0)
    length = max(dx, dy)
    is_flat = dx >= dy
    is_flipped = x0 > x1 if is_flat else y0 > y1  # drawn from the other end, so that both directions are the same line
    if is_flipped:
        x0, y0, x1, y1 = x1, y1, x0, y0
    steps = np.arange(length + 1)
    steps = steps[::-1] if is_flipped else steps
    slope = ((y1 - y0) if is_flat else (x1 - x0)) / length if length else math.nan
    other = np.trunc((y0 if is_flat else x0) + slope * steps + 0.5) if length else np.full(1, y0 if is_flat else x0)
    long_side, short_side = steps + (x0 if is_flat else y0), other.astype(np.int64)
    return (long_side, short_side) if is_flat else (short_side, long_side)
