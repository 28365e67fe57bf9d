"""Prints what became of every row of a curation."""

from collections.abc import Mapping
from typing import Any

from pipelines.curation.pieces import NOTES

_SHOWN = 20  # shards that were read in part


def print_summary(summary: Mapping[str, Any], seconds: Mapping[str, float], elapsed: float) -> None:
    """Prints the table of drops, and what else is to be known.

    Args:
        summary: What `pipelines.curation.curate.curate` returns.
        seconds: Time of each step.
        elapsed: Time of the whole, in seconds.
    """
    names = list(summary["sources"])
    width = max(len("drop reason"), *(len(reason) for reason in [*summary["drops"], "kept"]))
    print(f"{'drop reason':{width}}  " + "  ".join(f"{name:>12}" for name in [*names, "all"]))
    for reason, count in summary["drops"].items():
        cells = [summary["sources"][name]["drops"].get(reason, 0) for name in names]
        print(f"{reason:{width}}  " + "  ".join(f"{cell:>12,}" for cell in [*cells, count]))
    cells = [summary["sources"][name]["num_samples"] for name in names]
    print(f"{'kept':{width}}  " + "  ".join(f"{cell:>12,}" for cell in [*cells, summary["num_samples"]]))
    cells = [summary["sources"][name]["num_rows"] for name in names]
    print(f"{'of':{width}}  " + "  ".join(f"{cell:>12,}" for cell in [*cells, summary["num_rows"]]))
    lost = _shown(summary["caption_drops"])
    print(f"captions: {summary['num_captions']:,} kept of {summary['num_captions_in']:,}; dropped: {lost}")
    for name, recaptions in summary.get("recaptions", {}).items():
        print(*_recaptions(name, recaptions, summary["num_samples"]), sep="\n")
    for name, source in summary["sources"].items():
        for note, count in source["notes"].items():
            print(f"{name}: {count:,} samples {NOTES[note]}")
    for line in summary["read_in_part"][:_SHOWN]:
        print(f"read in part: {line}")
    whole = max(sum(seconds.values()), 1e-9)
    shares = "  ".join(
        f"{name} {part / whole:.0%}" for name, part in sorted(seconds.items(), key=lambda item: -item[1])
    )
    print(f"time by step: {shares}")
    print(f"wrote {summary['out']} in {elapsed:.0f} s")


def _recaptions(name: str, summary: Mapping[str, Any], num_samples: int) -> list[str]:
    """Says in two lines what became of the recaptions of one origin."""
    keyless = f", {summary['num_without_key']:,} rows without {summary['join']}" if summary["num_without_key"] else ""
    usable = summary["num_captions_in"] - sum(summary["caption_drops"].values())
    return [
        f"recaptions {name}: matched {summary['num_samples']:,} of {num_samples:,} samples by {summary['join']}; "
        f"{summary['num_captions']:,} kept of {summary['num_joined']:,} joined; dropped: "
        f"{_shown(summary['joined_drops'])}",
        f"  before: {usable:,} of {summary['num_captions_in']:,} captions in {summary['num_rows']:,} rows pass; "
        f"dropped: {_shown(summary['caption_drops'])}; {summary['num_cut']:,} cut to the context{keyless}",
    ]


def _shown(drops: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in drops.items()) or "none"
