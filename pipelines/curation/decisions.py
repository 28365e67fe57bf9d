"""Decides which samples and captions of one file of the data set are kept, or dropped, each for one reason."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipelines.curation.duplicates import (
    BOILERPLATE,
    BROUGHT,
    DUPLICATE,
    KEEP,
    NEAR_DUPLICATE,
    OVER_LIMIT,
    REASONS,
    REPEATED,
)

Row = Mapping[str, Any]
"""A row of MARKS_SCHEMA."""

_CAPTION_REASONS = {REPEATED: "caption_repeated", OVER_LIMIT: "caption_over_limit"}
"""Drop reasons of marks that stand for `number` captions."""


@dataclass(frozen=True, kw_only=True)
class KeptSample:
    row: Row
    """Row of the sample's first caption, which locates the sample."""
    captions: Sequence[Row]
    """The sample's own captions that it keeps."""
    brought: Sequence[Row]
    """Captions of its duplicates, which follow its own, with their locations."""
    recaptions: Sequence[Row] = ()
    """Captions of other origins, which follow these, by origin, with their locations."""


@dataclass(frozen=True, kw_only=True)
class Decisions:
    kept: Sequence[KeptSample]
    """In the order of the data set."""
    drops: Mapping[int, Counter[str]]
    """Number of samples by source and reason."""
    captions_kept: Counter[int]
    """Number of captions by source."""
    caption_drops: Mapping[int, Counter[str]]
    """By source and reason."""
    recaptions_kept: Counter[int] = field(default_factory=Counter)
    """Number of recaptions by origin."""
    recaptioned: Counter[int] = field(default_factory=Counter)
    """Number of kept samples with at least one of them."""
    recaption_drops: Mapping[int, Counter[str]] = field(default_factory=dict)
    """By origin and reason."""


@dataclass(kw_only=True)
class _Counts:
    drops: defaultdict[int, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    captions_kept: Counter[int] = field(default_factory=Counter)
    caption_drops: defaultdict[int, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    recaption_drops: defaultdict[int, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    def drop_captions(self, rows: Sequence[Row], reason: str) -> None:
        for row in rows:
            drops = self.recaption_drops[row["origin"]] if row["origin"] else self.caption_drops[row["source"]]
            drops[reason] += row["number"] if row["mark"] in _CAPTION_REASONS else 1


def decide(rows_and_marks: pa.Table, max_captions: int) -> Decisions:
    """Decides on the rows of a file of the data set by their marks.

    A sample is dropped for its captions only if all of them are boilerplate. A kept sample has its own captions and
    those that its duplicates bring, without repetitions, up to `max_captions`. Recaptions decide on no sample; of each
    origin, it keeps as many.
    """
    own: defaultdict[int, list[Row]] = defaultdict(list)
    brought: defaultdict[int, list[Row]] = defaultdict(list)
    not_brought: defaultdict[int, list[Row]] = defaultdict(list)
    recaptions: defaultdict[int, list[Row]] = defaultdict(list)
    marks: dict[int, int] = {}
    for row in rows_and_marks.to_pylist():
        if row["origin"]:
            recaptions[row["keeper"]].append(row)
        elif row["mark"] in (DUPLICATE, NEAR_DUPLICATE):
            marks[row["order"]] = row["mark"]
        elif row["mark"] == BROUGHT:
            brought[row["keeper"]].append(row)
        elif row["mark"] in _CAPTION_REASONS:
            not_brought[row["keeper"]].append(row)
        else:
            own[row["order"]].append(row)
    counts = _Counts()
    kept: list[KeptSample] = []
    for order, rows in own.items():
        rows.sort(key=lambda row: row["number"])
        good = [row for row in rows if row["mark"] == KEEP]
        counts.drop_captions([row for row in rows if row["mark"] == BOILERPLATE], REASONS[BOILERPLATE])
        mark = marks.get(order, KEEP) if good else BOILERPLATE
        others = sorted(brought[order], key=lambda row: (row["order"], row["number"]))
        if mark == KEEP:
            chosen = _chosen([*good, *others], max_captions, counts)
            captions = [row for row in chosen if row["order"] == order]
            others = chosen[len(captions) :]
            of_others = _recaptions(recaptions.pop(order, []), order, max_captions, counts)
            kept.append(KeptSample(row=rows[0], captions=captions, brought=others, recaptions=of_others))
            counts.captions_kept.update(row["source"] for row in chosen)
            for row in not_brought[order]:
                counts.drop_captions([row], _CAPTION_REASONS[row["mark"]])
            continue
        counts.drops[rows[0]["source"]][REASONS[mark]] += 1
        if mark == NEAR_DUPLICATE:  # a duplicate's captions are counted at the sample that it brings them to
            counts.drop_captions([*good, *others, *not_brought[order]], "image_dropped")
    for rows in recaptions.values():
        counts.drop_captions(rows, "image_dropped")
    kept.sort(key=lambda sample: (sample.row["shuffle_key"], sample.row["order"]))
    return Decisions(
        kept=kept,
        drops=counts.drops,
        captions_kept=counts.captions_kept,
        caption_drops=counts.caption_drops,
        recaptions_kept=Counter(row["origin"] for sample in kept for row in sample.recaptions),
        recaptioned=Counter(origin for sample in kept for origin in {row["origin"] for row in sample.recaptions}),
        recaption_drops=counts.recaption_drops,
    )


def _recaptions(rows: list[Row], keeper: int, max_captions: int, counts: _Counts) -> list[Row]:
    """Returns the recaptions that a sample keeps, by origin: its own, then those of its duplicates."""
    by_origin: defaultdict[int, list[Row]] = defaultdict(list)
    for row in rows:
        if row["mark"] == KEEP:
            by_origin[row["origin"]].append(row)
        else:
            counts.drop_captions([row], _CAPTION_REASONS.get(row["mark"], REASONS[BOILERPLATE]))
    chosen: list[Row] = []
    for _, of_origin in sorted(by_origin.items()):
        of_origin.sort(key=lambda row: (row["order"] != keeper, row["order"], row["number"]))
        chosen += _chosen(of_origin, max_captions, counts)
    return chosen


def _chosen(rows: Sequence[Row], max_captions: int, counts: _Counts) -> list[Row]:
    """Returns the captions that a sample keeps, and counts the others."""
    chosen: dict[int, Row] = {}
    for row in rows:
        if row["caption"] in chosen:
            counts.drop_captions([row], _CAPTION_REASONS[REPEATED])
        elif len(chosen) == max_captions:
            counts.drop_captions([row], _CAPTION_REASONS[OVER_LIMIT])
        else:
            chosen[row["caption"]] = row
    return list(chosen.values())
