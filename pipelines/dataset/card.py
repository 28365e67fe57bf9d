"""Statistics of a data set: counts, drops, histograms, nouns; as numbers and for the terminal."""

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow.compute import call_function

from groupvit.config import flatten
from pipelines.dataset.format import DatasetInfo, read_manifest
from pipelines.dataset.row_groups import Run, in_threads, read_columns, runs_of
from pipelines.provenance import redact

_MAX_BINS = 12
_NUM_TOP_NOUNS = 20
_BAR_WIDTH = 30
_SHOWN_OTHERWISE = ("schema_version", "num_samples", "num_row_groups", "digest", "drops")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chart:
    """Counts by label: a histogram, or a ranking."""

    title: str
    bars: tuple[tuple[str, int], ...]
    total: int
    """What shares are relative to. It exceeds the sum of the bars if some labels are left out."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Statistics:
    """Counts over all samples, or over a part of them."""

    num_counted: int
    num_captions: int
    sources: Chart
    origins: Chart
    """Captions by origin."""
    histograms: tuple[Chart, ...]
    nouns: Chart
    num_distinct_nouns: int
    num_without_nouns: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetCard:
    """All results of an inspection, ready to be shown."""

    info: DatasetInfo
    num_bytes: int
    """Size of all row groups, as training reads them."""
    drops: Mapping[str, Mapping[str, int]]
    """Counts by source, then reason. Empty if the data set does not have them."""
    provenance: Mapping[str, str]
    """Other values of dataset.json, by dotted name, without credentials."""
    statistics: Statistics

    def facts(self) -> dict[str, str]:
        statistics = self.statistics
        facts = {
            "samples": f"{self.info.num_samples:,}",
            "row groups": f"{len(self.info.rows):,}",
            "files": f"{len(self.info.files):,}",
            "bytes": f"{self.num_bytes:,} ({self.num_bytes / self.info.num_samples / 1000:,.1f} kB per sample)",
            "captions": f"{statistics.num_captions:,} for {statistics.num_counted:,} samples",
            "samples without nouns": share(statistics.num_without_nouns, statistics.num_counted),
            "distinct nouns": f"{statistics.num_distinct_nouns:,}",
            "dropped": f"{self.dropped().total:,}" if "drops" in self.info.metadata else "not said",
            "digest": self.info.digest,
            "schema version": str(self.info.metadata["schema_version"]),
        }
        if statistics.num_counted < self.info.num_samples:
            facts["counted"] = f"{statistics.num_counted:,} samples of evenly spaced row groups, for all but the counts"
        return facts

    def dropped(self) -> Chart:
        reasons: Counter[str] = Counter()
        for of_source in self.drops.values():
            reasons.update(of_source)
        return ranking("dropped, by reason", reasons)

    def charts(self) -> list[Chart]:
        origins = [self.statistics.origins] if len(self.info.caption_origins) > 1 else []
        return [self.statistics.sources, *origins, *self.statistics.histograms, self.statistics.nouns]

    def summary(self) -> dict[str, Any]:
        """Returns the card, JSON-safe."""
        return {
            "dataset": self.info.uri,
            "schema_version": self.info.metadata["schema_version"],
            "digest": self.info.digest,
            "num_samples": self.info.num_samples,
            "num_row_groups": len(self.info.rows),
            "num_files": len(self.info.files),
            "num_bytes": self.num_bytes,
            "drops": {source: dict(reasons) for source, reasons in self.drops.items()},
            "num_counted": self.statistics.num_counted,
            "num_captions": self.statistics.num_captions,
            "num_without_nouns": self.statistics.num_without_nouns,
            "num_distinct_nouns": self.statistics.num_distinct_nouns,
            "charts": {chart.title: dict(chart.bars) for chart in self.charts()},
            "provenance": dict(self.provenance),
        }


def read_card(info: DatasetInfo, max_counted_samples: int) -> DatasetCard:
    """Reads the manifest and, without the images, all samples, or about `max_counted_samples` of them."""
    num_bytes = read_manifest(info.uri, ["file", "bytes"]).column("bytes").to_numpy().sum(dtype=np.int64)
    other = {name: value for name, value in info.metadata.items() if name not in _SHOWN_OTHERWISE}
    return DatasetCard(
        info=info,
        num_bytes=int(num_bytes),
        drops=_drops(info.metadata.get("drops")),
        provenance={name: redact(_text(value)) for name, value in flatten(other).items()},
        statistics=_statistics(info, max_counted_samples),
    )


def card_text(card: DatasetCard) -> str:
    """Formats the card for a terminal, without control characters."""
    lines = [card.info.uri, ""]
    lines += _columns([(name, value) for name, value in card.facts().items()])
    for source, reasons in card.drops.items():
        lines += ["", *_bars(ranking(f"dropped of {source}, by reason", reasons))]
    for chart in card.charts():
        lines += ["", *_bars(chart)]
    if card.provenance:
        lines += ["", "dataset.json"]
        lines += _columns([(name, shortened(value, 90)) for name, value in card.provenance.items()], indent="  ")
    return "\n".join("".join(c if c.isprintable() else "�" for c in line) for line in lines)


def shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _statistics(info: DatasetInfo, max_counted_samples: int) -> Statistics:
    num_groups = len(info.rows)
    counted = min(num_groups, max(1, max_counted_samples * num_groups // info.num_samples))
    groups = np.arange(counted) * num_groups // counted
    sources: Counter[str] = Counter()
    nouns: Counter[str] = Counter()
    origins: Counter[str] = Counter()
    parts: list[_Part] = []
    for part in in_threads(lambda run: _read_part(info, run), runs_of(info, groups)):
        sources.update(part.sources)
        nouns.update(part.nouns)
        origins.update(part.origins)
        parts.append(dataclasses.replace(part, sources={}, nouns={}, origins={}))
    width, height, length = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("width", "height", "caption_length")
    )
    return Statistics(
        num_counted=len(width),
        num_captions=len(length),
        sources=ranking("source", sources),
        origins=ranking("captions, by origin", origins),
        histograms=(
            histogram("short side, pixels", np.minimum(width, height)),
            histogram("width, pixels", width),
            histogram("height, pixels", height),
            histogram("caption, characters", length),
        ),
        nouns=ranking("top nouns, share of all nouns", nouns, _NUM_TOP_NOUNS),
        num_distinct_nouns=len(nouns),
        num_without_nouns=sum(part.num_without_nouns for part in parts),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Part:
    """Counts over a few row groups."""

    width: npt.NDArray[np.int32]
    height: npt.NDArray[np.int32]
    caption_length: npt.NDArray[np.int32]
    sources: Mapping[str, int]
    origins: Mapping[str, int]
    nouns: Mapping[str, int]
    num_without_nouns: int


def _read_part(info: DatasetInfo, run: Run) -> _Part:
    table = read_columns(info, run, ["width", "height", "captions", "caption_origins", "source", "nouns"])
    captions = call_function("list_flatten", [table.column("captions")])
    nouns = call_function("list_flatten", [table.column("nouns")])
    has_nouns = call_function("list_value_length", [nouns]).to_numpy() > 0
    sample_of = call_function("list_parent_indices", [table.column("nouns")]).to_numpy()
    return _Part(
        width=table.column("width").to_numpy(),
        height=table.column("height").to_numpy(),
        caption_length=call_function("utf8_length", [captions]).to_numpy(),
        sources=_counts(table.column("source").cast(pa.string())),
        origins=_counts(call_function("list_flatten", [table.column("caption_origins")])),
        nouns=_counts(call_function("list_flatten", [nouns])),
        num_without_nouns=table.num_rows - len(np.unique(sample_of[has_nouns])),
    )


def _counts(values: pa.ChunkedArray) -> dict[str, int]:
    pairs = values.value_counts().to_pylist()
    return {"not said" if pair["values"] is None else pair["values"]: pair["counts"] for pair in pairs}


def ranking(title: str, counts: Mapping[str, int], num_bars: int | None = None) -> Chart:
    """Makes a chart with the most frequent labels first."""
    return Chart(title=title, bars=tuple(Counter(counts).most_common(num_bars)), total=sum(counts.values()))


def histogram(title: str, values: npt.NDArray[np.integer]) -> Chart:
    """Counts whole numbers in at most 13 bars: one per value if there are few, else equal ranges up to the 99th
    percentile, and one bar beyond.
    """
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) <= _MAX_BINS:
        bars = tuple(zip(map(str, distinct.tolist()), counts.tolist(), strict=True))
        return Chart(title=title, bars=bars, total=len(values))
    low, high = int(distinct[0]), int(np.percentile(values, 99))
    step = next(
        step
        for step in (factor * 10**power for power in range(10) for factor in (1, 2, 5))
        if high // step - low // step < _MAX_BINS
    )
    bins = np.minimum(values // step, high // step + 1) - low // step
    counts = np.bincount(bins)
    starts = [(low // step + index) * step for index in range(len(counts))]
    labels = [str(start) if step == 1 else f"{start}–{start + step - 1}" for start in starts]
    if int(distinct[-1]) // step > high // step:
        labels[-1] = f"≥ {starts[-1]}"
    return Chart(title=title, bars=tuple(zip(labels, counts.tolist(), strict=True)), total=len(values))


def _drops(drops: Any) -> dict[str, dict[str, int]]:
    """Returns counts by source and reason, even if dataset.json only has reasons. Omits sources without drops."""
    if not isinstance(drops, Mapping):
        return {}
    by_source: dict[str, dict[str, int]] = {}
    for name, value in drops.items():
        if isinstance(value, Mapping):
            by_source.setdefault(name, {}).update(value)
        else:
            by_source.setdefault("all sources", {})[name] = value
    return {source: reasons for source, reasons in by_source.items() if reasons}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def share(count: int, total: int) -> str:
    return f"{count:,} ({count / total:.1%})"


def _columns(rows: Sequence[tuple[str, str]], indent: str = "") -> list[str]:
    width = max(len(name) for name, _ in rows)
    return [f"{indent}{name.ljust(width)}  {value}" for name, value in rows]


def _bars(chart: Chart) -> list[str]:
    most = max((count for _, count in chart.bars), default=0)
    labels = [shortened(label, 40) for label, _ in chart.bars]
    width = max(map(len, labels), default=0)
    lines = [chart.title]
    for label, (_, count) in zip(labels, chart.bars, strict=True):
        bar = "█" * round(_BAR_WIDTH * count / most) or "▏" if count else ""
        lines.append(f"  {label.rjust(width)}  {bar} {share(count, chart.total)}")
    return lines
