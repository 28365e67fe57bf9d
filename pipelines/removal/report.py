"""The report of `groupvit forget`: what was removed, and what each run has seen of it; as JSON and for the terminal."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.console.tables import aligned
from pipelines.dataset.card import shortened
from pipelines.dataset.format import DatasetInfo
from pipelines.provenance import code_version, redact
from pipelines.removal.entries import Entries
from pipelines.removal.hits import Hits
from pipelines.removal.sightings import Sightings

_MOST_SHOWN = 20
"""Lines of a table in the terminal."""
_MOST_LISTED = 200_000
"""Samples, and visits of a run, that the report lists one by one."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What is known of a run."""

    run: str
    """URI of the run's folder, or `MLflow run ID`."""
    seen: Sightings | None = None
    """None: the run trains on other data, or it is not known what it has seen."""
    reason: str = ""
    """Why it is not known. Empty otherwise."""


def summary_of(info: DatasetInfo, entries: Entries, hits: Hits, answers: Sequence[Answer]) -> dict[str, Any]:
    """Returns the counts, JSON-safe. `out` is for the caller to fill in."""
    counts = Counter(number for hit in hits.samples for number in hit.entries)
    return {
        "data": {"uri": redact(info.uri), "digest": info.digest, "num_samples": info.num_samples},
        "out": None,
        "num_removed": len(hits.samples),
        "num_compared_by_stored_image": hits.num_without_sha256,
        "num_entries": len(entries.all),
        "num_entries_without_samples": len(entries.all) - len(counts),
        "runs": [_of_run(answer.seen) for answer in answers if answer.seen is not None],
        "runs_on_other_data": [redact(answer.run) for answer in answers if answer.seen is None and not answer.reason],
        "runs_not_known": [
            {"run": redact(answer.run), "reason": redact(answer.reason)} for answer in answers if answer.reason
        ],
        "code_version": code_version(),
    }


def _of_run(seen: Sightings) -> dict[str, Any]:
    """What the terminal and the report say of a run."""
    return {
        "run": redact(seen.record.run),
        "newest_step": seen.record.newest_step,
        "samples_seen": len(np.unique(seen.index)),
        "visits": len(seen.step),
        "visits_in_skipped_steps": int(seen.skipped.sum()),
        "first_step": int(seen.step[0]) if len(seen.step) else None,
        "last_step": int(seen.step[-1]) if len(seen.step) else None,
        "first_learned_step": seen.first_learned_step,
        "checkpoints_without": seen.checkpoints_without,
        "substituted_images": seen.record.num_substituted,
        "skipped_steps_not_known": seen.record.num_skipped_unknown,
    }


def lists_of(entries: Entries, hits: Hits, answers: Sequence[Answer]) -> dict[str, Any]:
    """Returns what only the file says: entries, samples, and visits of runs one by one, JSON-safe."""
    counts = Counter(number for hit in hits.samples for number in hit.entries)
    return {
        "listed_at_most": _MOST_LISTED,
        "entries": [
            {"kind": entry.kind, "entry": entry.text, "num_samples": counts[number]}
            for number, entry in enumerate(entries.all)
        ],
        "samples": [
            {"sample_id": hit.sample_id, "url": hit.url, "source": hit.source, "entries": hit.entries}
            for hit in hits.samples[:_MOST_LISTED]
        ],
        "runs": [
            _of_run(answer.seen) | {"seen": list(_visits(hits, answer.seen))}
            for answer in answers
            if answer.seen is not None
        ],
    }


def _visits(hits: Hits, seen: Sightings) -> Iterator[dict[str, Any]]:
    columns = (seen.index, seen.epoch, seen.step, seen.skipped)
    for index, epoch, step, skipped in zip(*(column[:_MOST_LISTED].tolist() for column in columns), strict=True):
        yield {"sample_id": hits.samples[index].sample_id, "epoch": epoch, "step": step, "skipped": skipped}


def show(summary: dict[str, Any], entries: Entries, hits: Hits) -> None:
    """Prints what was found."""
    counts = Counter(number for hit in hits.samples for number in hit.entries)
    print(f"{len(hits.samples):,} of {summary['data']['num_samples']:,} samples match, by entry:")
    most = counts.most_common(_MOST_SHOWN)
    rows = [[shortened(entries.all[number].text, 100), f"{count:,}"] for number, count in most]
    _print_table(["entry", "samples"], rows, len(counts))
    if missing := summary["num_entries_without_samples"]:
        print(f"{missing:,} of {len(entries.all):,} entries match no sample")
    if hits.num_without_sha256:
        print(
            f"{hits.num_without_sha256:,} samples have no sha256 of the original file: the stored image was compared, "
            "which is another file if the original was converted or made smaller"
        )
    if summary["runs"]:
        print("\nWhat runs have seen of them, up to the newest checkpoint (in MLflow, the last step):")
        header = ["run", "steps", "samples", "times", "skipped", "first step", "last step", "checkpoints without them"]
        _print_table(header, [_row(run) for run in summary["runs"][:_MOST_SHOWN]], len(summary["runs"]))
    for run in summary["runs"]:
        if run["substituted_images"]:
            print(
                f"{run['run']}: {run['substituted_images']:,} corrupt images were replaced by another one of their "
                "window, which may have been one of these samples at a step that is not named"
            )
        if run["skipped_steps_not_known"]:
            print(f"{run['run']}: {run['skipped_steps_not_known']:,} steps were skipped; MLflow does not know which")
    if summary["runs_on_other_data"]:
        print(f"{len(summary['runs_on_other_data']):,} runs train on other data")
    for unknown in summary["runs_not_known"]:
        print(f"not known: {unknown['reason']}")


def _row(run: dict[str, Any]) -> list[str]:
    without = run["checkpoints_without"] or []
    steps = ", ".join(str(step) for step in without[-3:]) or ("none" if run["checkpoints_without"] == [] else "-")
    numbers = [run["newest_step"], run["samples_seen"], run["visits"], run["visits_in_skipped_steps"]]
    ends = ["-" if step is None else f"{step:,}" for step in (run["first_step"], run["last_step"])]
    more = "…, " if len(without) > 3 else ""
    return [run["run"], *(f"{number:,}" for number in numbers), *ends, more + steps]


def _print_table(header: list[str], rows: list[list[str]], num_rows: int) -> None:
    for line in aligned(header, rows):
        print("".join(c if c.isprintable() else "�" for c in line))
    if num_rows > len(rows):
        print(f"and {num_rows - len(rows):,} more, see the report")
