"""The order of samples: pure functions from a position in the run to a sample. Needs numpy only.

A run sees one endless sequence of samples. The row groups of its data sets, the weights of the mixture and a seed
determine it. It is never stored: any part is computed when needed, at a cost that does not grow with its position.

- The rows of a source are split into *chunks*. Each row group of the most common size is one. The rows of all other
  groups, one after the other, are cut into more chunks of that size. An epoch visits the chunks in an order drawn from
  (seed, source, epoch), and then the remaining rows that fill no chunk: each row exactly once. The sequence of a source
  is the concatenation of its epochs.
- Window k holds the positions [k·window_size, (k+1)·window_size). Each source fills its quota of the window with the
  next rows of its own sequence. The rows are then permuted by (seed, window).
- Slice j holds the positions [j·slice_size, (j+1)·slice_size). Optimiser step t takes the slices [t·G, (t+1)·G), where
  G = global batch size / slice_size. Worker r of W takes those with index ≡ r (mod W).
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipelines.ingest.permutation import IntArray, permute

_CHUNKS, _WINDOWS = 0, 1  # separate the keys of the two kinds of permutation


class Samples(NamedTuple):
    """Locations of samples: one entry per sample, int64."""

    position: IntArray
    """Position in the run's sequence."""
    source: IntArray
    """Index of the data set."""
    epoch: IntArray
    """Epoch of its source, from 0."""
    row_group: IntArray
    """Index of the row group in the manifest of the source."""
    row: IntArray
    """Index within the row group."""


class Visits(NamedTuple):
    """Where rows stand in the run's sequence: one entry per visit of a row, int64, ascending by position."""

    index: IntArray
    """Which of the rows."""
    position: IntArray
    """Position in the run's sequence."""
    epoch: IntArray
    """Epoch of the source, from 0."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """The layout of one data set. Small for any number of row groups, if most have the same size."""

    num_samples: int
    chunk_rows: int
    """Number of rows of a row group of the most common size."""
    num_full_groups: int
    """Number of row groups of the most common size."""
    odd_groups: IntArray
    """Indices of all other row groups, ascending."""
    odd_offsets: IntArray
    """[len(odd_groups) + 1]: number of rows in the odd row groups before each one."""

    @classmethod
    def from_row_groups(cls, rows: npt.ArrayLike) -> "Source":
        """Creates it from the rows [R] of the row groups, in manifest order. Raises ValueError if it has no rows."""
        rows = np.asarray(rows)
        filled = rows[rows > 0]
        if not len(filled):
            raise ValueError("rows: no row group holds a sample; a source needs at least one")
        sizes, counts = np.unique(filled, return_counts=True)
        chunk_rows = int(sizes[counts == counts.max()][-1])
        odd_groups = np.flatnonzero(rows != chunk_rows).astype(np.int64)
        return cls(
            num_samples=int(rows.sum(dtype=np.int64)),
            chunk_rows=chunk_rows,
            num_full_groups=len(rows) - len(odd_groups),
            odd_groups=odd_groups,
            odd_offsets=np.concatenate([[0], np.cumsum(rows[odd_groups], dtype=np.int64)]),
        )

    @property
    def num_chunks(self) -> int:
        return self.num_full_groups + int(self.odd_offsets[-1]) // self.chunk_rows

    def locate(self, positions: IntArray, key: Sequence[int]) -> tuple[IntArray, IntArray]:
        """Positions [N] in one epoch, 0 … num_samples-1, → (row group [N], row [N]). `key` sets the epoch's order."""
        chunk, row = np.divmod(positions, self.chunk_rows)
        in_chunk = chunk < self.num_chunks
        chunk[in_chunk] = permute(chunk[in_chunk], self.num_chunks, key)

        # Rows of odd groups, counted across all of them. Rows left over at the epoch's end have chunk == num_chunks.
        odd_row = (chunk - self.num_full_groups) * self.chunk_rows + row
        odd = np.searchsorted(self.odd_offsets, odd_row, side="right") - 1
        is_odd = chunk >= self.num_full_groups

        # An odd group is before the i-th full group if it has at most i full groups before it.
        full_before = self.odd_groups - np.arange(len(self.odd_groups))
        full_group = chunk + np.searchsorted(full_before, chunk, side="right")
        odd = np.where(is_odd, odd, 0)
        odd_group = self.odd_groups[odd] if len(self.odd_groups) else full_group
        return np.where(is_odd, odd_group, full_group), np.where(is_odd, odd_row - self.odd_offsets[odd], row)

    def find(self, row_groups: IntArray, rows: IntArray, key: Sequence[int]) -> IntArray:
        """Row groups [N] and rows [N] in them → their positions [N] in one epoch: the inverse of `locate`."""
        odd = np.searchsorted(self.odd_groups, row_groups)
        is_odd = np.isin(row_groups, self.odd_groups)
        odd_chunk, odd_row = np.divmod(self.odd_offsets[odd] + rows, self.chunk_rows)
        chunk = np.where(is_odd, self.num_full_groups + odd_chunk, row_groups - odd)
        in_chunk = chunk < self.num_chunks
        chunk[in_chunk] = permute(chunk[in_chunk], self.num_chunks, key, inverse=True)
        return chunk * self.chunk_rows + np.where(is_odd, odd_row, rows)


@dataclass(frozen=True, kw_only=True)
class SampleOrder:
    """The run's sequence of samples. Small, and the same in every process."""

    sources: tuple[Source, ...]
    weights: tuple[tuple[int, tuple[int, ...]], ...]
    """Share of each source, in whole numbers, with the first window for which it holds, ascending from window 0: with 3
    and 1, three of four samples come from the first."""
    seed: int
    window_size: int

    @classmethod
    def of(
        cls,
        sources: Sequence[Source],
        *,
        seed: int,
        window_size: int,
        weights: Sequence[float] | None = None,
        later_weights: Sequence[tuple[int, Sequence[float]]] = (),
    ) -> "SampleOrder":
        """`weights` may have any scale. None mixes by size, so that all sources end their epochs together.

        `later_weights` are other weights, each with the first position for which they are wanted, ascending: they hold
        from the first window on that begins there or later.
        """
        if not sources:
            raise ValueError("sources: none given; the order of samples needs at least one")
        if window_size < 1:
            raise ValueError(f"window_size: {window_size} must be at least 1")
        first = [source.num_samples for source in sources] if weights is None else weights
        # Of those that are to begin within the same window, the last ones.
        by_window = {0: first} | {-(-position // window_size): shares for position, shares in later_weights}
        return cls(
            sources=tuple(sources),
            weights=tuple((window, _whole(shares, len(sources))) for window, shares in sorted(by_window.items())),
            seed=seed,
            window_size=window_size,
        )

    def locate(self, positions: npt.ArrayLike) -> Samples:
        """Returns the samples at `positions` [N] of the run's sequence, which may be in any order."""
        positions = np.asarray(positions, dtype=np.int64).reshape(-1)
        if len(positions) and positions.min() < 0:
            raise ValueError(f"positions: {positions.min()} is negative; the sequence starts at 0")
        columns = np.empty((4, len(positions)), dtype=np.int64)
        windows = positions // self.window_size
        for window in np.unique(windows).tolist():
            inside = windows == window
            columns[:, inside] = self._locate_in_window(window, positions[inside] % self.window_size)
        return Samples(positions, *columns)

    def window(self, index: int) -> Samples:
        """Returns the samples of one window, in order."""
        return self.locate(np.arange(index * self.window_size, (index + 1) * self.window_size))

    def counts_before_window(self, window: int) -> list[int]:
        """Number of samples taken from each source in all windows before this one.

        Each source in turn gets its share of what the sources before it left. So every count only grows, by at most one
        per sample, and stays within one sample per source, for each change of the weights, of its exact share. The
        counts sum to window · window_size.
        """
        totals = [0] * len(self.sources)
        ends = [first for first, _ in self.weights[1:]] + [window]
        for (first, weights), end in zip(self.weights, ends, strict=True):
            left, weight_left = max(min(end, window) - first, 0) * self.window_size, sum(weights)
            for index, weight in enumerate(weights):
                count = left * weight // weight_left
                totals[index] += count
                left -= count
                weight_left -= weight
        return totals

    def counts_before(self, position: int) -> list[int]:
        """Number of samples taken from each source at the positions before this one."""
        window, rest = divmod(position, self.window_size)
        inside = self.locate(np.arange(window * self.window_size, window * self.window_size + rest))
        taken = np.bincount(inside.source, minlength=len(self.sources)).tolist()
        return [before + now for before, now in zip(self.counts_before_window(window), taken, strict=True)]

    def find(self, source: int, row_groups: IntArray, rows: IntArray, end: int) -> Visits:
        """Returns all positions before `end` at which the run visits rows [N] of a source: the inverse of `locate`.

        The cost grows with the number of visits, not with `end`. Memory: about 100 bytes for each visit.
        """
        layout, num_windows = self.sources[source], -(-end // self.window_size)
        num_epochs = -(-self.counts_before_window(num_windows)[source] // layout.num_samples)
        found = np.empty((num_epochs, len(rows)), dtype=np.int64)  # positions in the sequence of the source
        for epoch in range(num_epochs):
            found[epoch] = layout.find(row_groups, rows, (self.seed, _CHUNKS, source, epoch))
            found[epoch] += epoch * layout.num_samples
        epochs, index = np.divmod(np.argsort(found, axis=None), max(len(rows), 1))
        in_source = found[epochs, index]

        positions, start, window = np.empty_like(in_source), 0, 0
        while start < len(in_source):
            # The last window that has at most as many samples of the source before it holds the next one.
            window = bisect.bisect_right(
                range(num_windows + 1), in_source[start], window, key=lambda k: self.counts_before_window(k)[source]
            )
            before, after = self.counts_before_window(window - 1), self.counts_before_window(window)
            stop = int(np.searchsorted(in_source, after[source]))
            if stop == start:
                break  # this one and all after it are later than `end`
            offset = sum(after[:source]) - sum(before[:source])
            places = in_source[start:stop] - before[source] + offset
            permuted = permute(places, self.window_size, (self.seed, _WINDOWS, window - 1), inverse=True)
            positions[start:stop] = (window - 1) * self.window_size + permuted
            start = stop
        kept = np.flatnonzero(positions[:start] < end)
        kept = kept[np.argsort(positions[kept])]
        return Visits(index[kept], positions[kept], epochs[kept])

    def _locate_in_window(self, window: int, places: IntArray) -> IntArray:
        """Places [N] in one window → [4, N]: source, epoch, row group, row."""
        first = self.counts_before_window(window)
        quota = np.subtract(self.counts_before_window(window + 1), first)
        offsets = np.cumsum(quota) - quota
        unpermuted = permute(places, self.window_size, (self.seed, _WINDOWS, window))
        source_of = np.searchsorted(offsets + quota, unpermuted, side="right")
        located = np.empty((4, len(places)), dtype=np.int64)
        located[0] = source_of
        for index in np.unique(source_of).tolist():
            inside = source_of == index
            source = self.sources[index]
            epochs, in_epoch = np.divmod(first[index] + unpermuted[inside] - offsets[index], source.num_samples)
            groups, rows = np.empty_like(epochs), np.empty_like(epochs)
            for epoch in np.unique(epochs).tolist():
                now = epochs == epoch
                groups[now], rows[now] = source.locate(in_epoch[now], (self.seed, _CHUNKS, index, epoch))
            located[1:, inside] = epochs, groups, rows
        return located


def slices_of_step(step: int, slices_per_step: int, *, rank: int = 0, world_size: int = 1) -> range:
    """Indices of the slices that worker `rank` of `world_size` consumes at an optimiser step; by default, all."""
    if slices_per_step % world_size:
        raise ValueError(f"slices_per_step: {slices_per_step} is not a multiple of world_size {world_size}")
    return range(step * slices_per_step + rank, (step + 1) * slices_per_step, world_size)


def _whole(shares: Sequence[float], num_sources: int) -> tuple[int, ...]:
    """Shares → whole numbers with the same proportions."""
    if len(shares) != num_sources:
        raise ValueError(f"weights: {len(shares)} given for {num_sources} sources; give one each")
    if min(shares) <= 0:
        raise ValueError(f"weights: {tuple(shares)} must all be above 0; leave out the source instead")
    # Converted by way of their shortest decimals, 0.1 is exactly a tenth, and all counts are exact.
    fractions = [Fraction(str(share)) for share in shares]
    scale = np.lcm.reduce([fraction.denominator for fraction in fractions], dtype=object)
    return tuple(int(fraction * scale) for fraction in fractions)
