"""Combines the scores of an image's windows into one label per pixel, without storing every class for every pixel.

Scores of overlapping windows are averaged. The average is resized to the image (bilinear), the scores of all views are
added, and the best class wins. Two functions compute exactly this:

- `combined_hard` is for a single view in which a pixel has the scores of its group. Then there are few distinct score
  vectors, and only pixels between two labels need their own computation.
- `combined_soft` is for all other cases. It processes the image in strips.

Shapes: *layers* are the C classes followed by the background at each of T thresholds, L = C + T; H x W pixels of the
image, h x w pixels of a view.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from groupvit.resizing import Box
from groupvit.windows import View, Window

STRIP_NUMBERS = 2**24
"""Number of scores that `combined_soft` holds at a time: 64 MB."""
EDGE_PIXELS_AT_ONCE = 2**15

Decide = Callable[[Tensor], Tensor]
"""Layers [L, ...] → label at each threshold, uint8 [T', ...]."""


def decide(layers: Tensor, num_classes: int, thresholds: Sequence[float | None]) -> Tensor:
    """Layers [L, ...] → labels uint8 [len(thresholds), ...]: 0 is the background and class i has label i + 1.

    A threshold of None has no layer, and there class i has label i.
    """
    best, labels = layers[:num_classes].max(dim=0)
    backgrounds = iter(layers[num_classes:])
    maps = [labels if limit is None else (labels + 1).masked_fill(next(backgrounds) >= best, 0) for limit in thresholds]
    return torch.stack(maps).to(torch.uint8)


def combined_hard(
    view: View, groups: Sequence[Tensor], layers: Sequence[Tensor], size: tuple[int, int], decide: Decide
) -> Tensor:
    """Label a single view whose pixels have the scores of their groups: uint8 [T', H, W].

    groups, layers: for each window, the group of each pixel [h, w] and the layers of each group [L, G].
    """
    codes, table = _codes(view, groups, layers)
    decided = decide(table)
    rows, columns = _Taps.of(view.size[0], size[0], codes.device), _Taps.of(view.size[1], size[1], codes.device)
    corners = [codes[y][:, x] for y in (rows.low, rows.high) for x in ((columns.low, columns.high))]
    labels = decided[:, corners[0]]
    # A class that wins at all four neighbours also wins between them. So only pixels between labels are interpolated.
    mixed = torch.zeros(size, dtype=torch.bool, device=codes.device)
    for corner in corners[1:]:
        mixed |= (corner != corners[0]) & (decided[:, corner] != labels).any(dim=0)
    places, by_code = mixed.nonzero(), table.T.contiguous()
    for some in places.split(EDGE_PIXELS_AT_ONCE):
        y, x = some.unbind(dim=1)
        down, right = rows.weight[y], columns.weight[x]
        weights = ((1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right)
        total = torch.zeros(len(some), len(table), device=table.device)
        for corner, weight in zip(corners, weights, strict=True):
            total.addcmul_(by_code.index_select(0, corner[y, x]), weight[:, None])
        labels[:, y, x] = decide(total.T)
    return labels


def combined_soft(
    views: Sequence[View],
    layers_of_rows: Callable[[int, int, int, int], Tensor],
    num_layers: int,
    size: tuple[int, int],
    decide: Decide,
) -> Tensor:
    """Label any views: uint8 [T', H, W].

    layers_of_rows: (view, window, top, bottom) → layers [L, bottom - top, width] of these rows of the window.
    """
    height, width = size
    strip = max(STRIP_NUMBERS // (num_layers * max(width, *(view.size[1] for view in views))), 1)
    parts: list[Tensor] = []
    for start in range(0, height, strip):
        total: Tensor | None = None
        for number, view in enumerate(views):
            taps = _Taps.of(view.size[0], height, view.windows[0].segments.device).part(start, start + strip)
            first, last = int(taps.low[0]), int(taps.high[-1]) + 1
            average = _averaged_rows(number, view, layers_of_rows, num_layers, first, last)
            average = average.flip(-1) if view.mirrored else average
            resized = taps.shifted(first).mix(average, dim=1)
            resized = _Taps.of(view.size[1], width, resized.device).mix(resized, dim=2)
            total = resized if total is None else total + resized
        assert total is not None  # there is at least one view
        parts.append(decide(total))
    return torch.cat(parts, dim=1)


def resized_rows(maps: Tensor, size: tuple[int, int], top: int, bottom: int) -> Tensor:
    """Resize maps [K, h, w] to `size` (bilinear) and return rows `top` to `bottom` only: [K, bottom - top, W]."""
    rows = _Taps.of(maps.shape[1], size[0], maps.device).part(top, bottom).mix(maps, dim=1)
    return _Taps.of(maps.shape[2], size[1], maps.device).mix(rows, dim=2)


@dataclass(frozen=True)
class _Taps:
    """Bilinear resizing along one axis: the two source positions on either side of each target position."""

    low: Tensor
    high: Tensor
    weight: Tensor
    """Weight of `high`; that of `low` is the rest to 1."""

    @classmethod
    def of(cls, source: int, target: int, device: torch.device) -> "_Taps":
        positions = (torch.arange(target, device=device) + 0.5) * (source / target) - 0.5
        positions = positions.clamp(min=0)
        low = positions.long().clamp(max=source - 1)
        return cls(low=low, high=(low + 1).clamp(max=source - 1), weight=positions - low)

    def part(self, start: int, end: int) -> "_Taps":
        return _Taps(self.low[start:end], self.high[start:end], self.weight[start:end])

    def shifted(self, first: int) -> "_Taps":
        return _Taps(self.low - first, self.high - first, self.weight)

    def mix(self, values: Tensor, dim: int) -> Tensor:
        weight = self.weight.view(-1, *[1] * (values.dim() - 1 - dim))
        return torch.lerp(values.index_select(dim, self.low), values.index_select(dim, self.high), weight)


def _codes(view: View, groups: Sequence[Tensor], layers: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Distinct score vectors of a view's pixels: the index of each pixel's [h, w], and all of them [L, number]."""
    num_groups = layers[0].shape[1]
    codes = torch.empty(view.size, dtype=torch.long, device=layers[0].device)
    tables: list[Tensor] = []
    count = 0
    for (top, bottom, left, right), covering in _cells(view):
        combined = torch.zeros(bottom - top, right - left, dtype=torch.long, device=codes.device)
        for number in covering:
            box = view.windows[number].box
            part = groups[number][top - box[0] : bottom - box[0], left - box[2] : right - box[2]]
            combined = combined * num_groups + part
        used, inverse = combined.unique(return_inverse=True)
        codes[top:bottom, left:right] = inverse + count
        total = torch.zeros(len(layers[0]), len(used), device=codes.device)
        for place, number in enumerate(covering):
            total += layers[number][:, used // num_groups ** (len(covering) - 1 - place) % num_groups]
        tables.append(total / len(covering))
        count += len(used)
    return codes, torch.cat(tables, dim=1)


def _cells(view: View) -> Iterator[tuple[Box, list[int]]]:
    """Yield the rectangles into which the windows' edges divide a view, each with the windows that cover it."""
    boxes = [window.box for window in view.windows]
    rows = sorted({edge for box in boxes for edge in box[:2]})
    columns = sorted({edge for box in boxes for edge in box[2:]})
    for top, bottom in itertools.pairwise(rows):
        for left, right in itertools.pairwise(columns):
            covering = [
                number
                for number, box in enumerate(boxes)
                if box[0] <= top and bottom <= box[1] and box[2] <= left and right <= box[3]
            ]
            yield (top, bottom, left, right), covering


def _averaged_rows(
    number: int,
    view: View,
    layers_of_rows: Callable[[int, int, int, int], Tensor],
    num_layers: int,
    first: int,
    last: int,
) -> Tensor:
    """Mean of the windows' layers in rows `first` to `last` of the view: [L, last - first, w]."""
    device = view.windows[0].segments.device
    total = torch.zeros(num_layers, last - first, view.size[1], device=device)
    times = torch.zeros(last - first, view.size[1], device=device)
    for place, window in enumerate(view.windows):
        top, bottom, left, right = window.box
        start, end = max(top, first), min(bottom, last)
        if start < end:
            layers = layers_of_rows(number, place, start - top, end - top)
            total[:, start - first : end - first, left:right] += layers
            times[start - first : end - first, left:right] += 1
    return total / times


def pixel_groups(window: Window) -> Tensor:
    """Group of the last stage for each pixel of a window: [h, w]."""
    return best_groups(full_maps(window))


def best_groups(maps: Tensor) -> Tensor:
    """Group with the largest value for each pixel, the first of several: maps [G, h, w] → [h, w].

    Equal to `argmax(dim=0)`, which is ten times slower on CPUs.
    """
    best, groups = maps[0].clone(), torch.zeros(maps.shape[1:], dtype=torch.long, device=maps.device)
    for group in range(1, len(maps)):
        groups.masked_fill_(maps[group] > best, group)
        torch.maximum(best, maps[group], out=best)
    return groups


def full_maps(window: Window) -> Tensor:
    """Group maps of the last stage, resized to the window: [G, h, w]."""
    size = window.pixels.shape[-2:]
    resized = torch.nn.functional.interpolate(
        window.group_maps[-1][None], size=tuple(size), mode="bilinear", align_corners=False
    )
    return resized[0]
