"""Shows what a sweep found: a table for the terminal, a folder of tables and pictures, and the run in MLflow."""

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path

from pipelines import storage
from pipelines.console.tables import aligned, csv_text, markdown, number
from pipelines.sweeps.record import TrialRecord
from pipelines.sweeps.report.summary import STATUSES, SweepReport, best_trial, last_score, short_names, summarise, text
from pipelines.tracking.tables import log_table

__all__ = ["log_report", "summarise", "table", "write_report"]

PICTURES = ("leaderboard", "learning_curves", "parallel_coordinates", "parameter_importance")
"""Names of the PNG files, in the order to look at them."""
_DIGEST_TAG = "groupvit.report_digest"
"""MLflow tag: digest of the report whose pictures the run has."""
_MOST_ROWS, _LONGEST_TAG = 10, 5000
"""Limits of the description: rows of its table, and characters."""
_MOST_LINES = 30
"""Maximum number of rows of the table for the terminal."""


def write_report(trials: Sequence[TrialRecord], out: Path) -> SweepReport:
    """Write leaderboard.csv, .md and .json, and the `PICTURES`. Safe to repeat when trials have progressed."""
    from pipelines.sweeps.report.pictures import draw  # matplotlib takes a second to import

    report = summarise(trials)
    header, rows = leaderboard(report)
    files = {f"{name}.png": content for name, content in draw(report).items()}
    files["leaderboard.csv"] = csv_text([header, *rows]).encode()
    files["leaderboard.md"] = f"{markdown(header, rows)}\n{remarks(report, ending='  ')}\n".encode()
    # Written last: a folder with this file is complete.
    files["leaderboard.json"] = (json.dumps(report.summary(), indent=2, allow_nan=False) + "\n").encode()
    for name, content in files.items():
        storage.write_bytes(str(out / name), content)
    return report


def table(report: SweepReport) -> str:
    """Return the leaderboard and the remarks on it, for the terminal."""
    header, rows = leaderboard(report)
    more = [f"… and {len(rows) - _MOST_LINES} more"] if len(rows) > _MOST_LINES else []
    return "\n".join(["", *aligned(header, rows[:_MOST_LINES]), *more, "", remarks(report), ""])


def leaderboard(report: SweepReport) -> tuple[list[str], list[list[str]]]:
    """Return header and rows, one per configuration: mIoU in percent over seeds, and the states of its trials."""
    names = short_names(report.varied)
    header = ["rank", *(names[name] for name in report.varied), "mIoU", "sd", "n", "lowest", "highest"]
    header += ["p vs best", "so far", "trials", "best trial"]
    rows = []
    for rank, each in enumerate(report.configurations, 1):
        scores = each.scores.values()
        best = best_trial(each.trials)
        counts = {status: sum(trial.status == status for trial in each.trials) for status in STATUSES}
        rows.append(
            [
                str(rank) if scores else "-",
                *(text(each.values.get(name)) for name in report.varied),
                number(each.mean),
                number(each.deviation),
                str(len(scores)),
                number(min(scores, default=None)),
                number(max(scores, default=None)),
                "-" if each.p_value is None else f"{each.p_value:.2g}",
                "-" if scores or best is None else f"{number(last_score(best))} at {max(best.scores)}",
                ", ".join(f"{count} {status}" for status, count in counts.items() if count),
                "-" if best is None else best.name,
            ]
        )
    return header, rows


def remarks(report: SweepReport, *, ending: str = "") -> str:
    """Return the lines below the leaderboard, each followed by `ending`."""
    counts = ", ".join(f"{count} {status}" for status in STATUSES if (count := report.count(status)))
    lines = [f"{len(report.trials)} trials of {len(report.configurations)} configurations: {counts or 'none'}"]
    if report.best is not None and (score := last_score(report.best)) is not None:
        lines.append(f"best trial: {report.best.name}, mIoU {score:.2f} % at step {max(report.best.scores)}")
    lines.append(report.verdict())
    if report.seed_share is not None:
        share = f"{100 * report.seed_share:.0f} % of the variance of final scores"
        lines.append(f"{share} lies between seeds of the same configuration")
    names = short_names(report.varied)
    shares = ", ".join(f"{names[name]} {share:.2f}" for name, share in report.importance.shares.items())
    note = report.importance.note
    lines.append(f"importance: {shares}: {note}" if shares else f"importance: {note}")
    for trial in report.trials:
        if trial.status == "failed":
            lines.append(f"failed: {trial.name}: {trial.stop_reason or 'it did not say why'}")
    return "\n".join(line + ending for line in lines)


def log_report(report: SweepReport, out: Path, tracking_uri: str | None, run_id: str) -> None:
    """Log a written report to the sweep's run in MLflow: leaderboard and trials as tables, the leaderboard also as the
    run's description, numbers as metrics, and the pictures. Repeating this replaces the old content.

    ValueError if MLflow refuses or cannot be reached.
    """
    from mlflow import MlflowClient
    from mlflow.entities import Metric
    from PIL import Image

    from pipelines.tracking.errors import one_line

    digest = hashlib.sha256((out / "leaderboard.json").read_bytes()).hexdigest()[:12]
    with one_line(tracking_uri):
        client = MlflowClient(tracking_uri=tracking_uri)
        log_table(client, run_id, "leaderboard.json", *leaderboard(report))
        log_table(client, run_id, "trials.json", *trial_table(report))
        for name in PICTURES:
            client.log_artifact(run_id, str(out / f"{name}.png"), "report")
        for ending in ("csv", "md", "json"):
            client.log_artifact(run_id, str(out / f"leaderboard.{ending}"), "report")
        client.set_tag(run_id, "mlflow.note.content", _description(report))
        data = client.get_run(run_id).data
        step = sum(trial.status != "running" for trial in report.trials)
        now, metrics = time.time_ns() // 1_000_000, report.metrics().items()
        new = [Metric(name, value, now, step) for name, value in metrics if data.metrics.get(name) != value]
        client.log_batch(run_id, metrics=new)
        if data.tags.get(_DIGEST_TAG) != digest:  # an image logged at a step stays forever
            for name in PICTURES:
                with Image.open(out / f"{name}.png") as picture:
                    key = f"sweep {name.replace('_', ' ')}"
                    client.log_image(run_id, picture, key=key, step=step, synchronous=True)
            client.set_tag(run_id, _DIGEST_TAG, digest)


def trial_table(report: SweepReport) -> tuple[list[str], list[list[str]]]:
    """Return header and rows, one per trial, in the order of the leaderboard."""
    names = short_names(report.varied)
    parts = list(dict.fromkeys(part for trial in report.trials for part in trial.part_scores))
    header = ["trial", *(names[name] for name in report.varied), "seed", "status", "mIoU", "step"]
    header += [*(f"{part} mIoU" for part in parts), "seconds", "reason", "run"]
    rows = []
    for trial in (trial for each in report.configurations for trial in each.trials):
        rows.append(
            [
                trial.name,
                *(text(trial.values.get(name)) for name in report.varied),
                str(trial.seed),
                trial.status,
                number(last_score(trial)),
                str(max(trial.scores)) if trial.scores else "-",
                *(number(trial.part_scores.get(part)) for part in parts),
                number(trial.train_seconds),
                trial.stop_reason or "-",
                trial.run_id or "-",
            ]
        )
    return header, rows


def _description(report: SweepReport) -> str:
    """Return Markdown: the top of the leaderboard, and the remarks on it."""
    header, rows = leaderboard(report)
    told = [place for place, name in enumerate(header) if name == "mIoU" or any(row[place] != "-" for row in rows)]
    header, rows = [header[place] for place in told], [[row[place] for place in told] for row in rows]
    more = (
        f"\n{len(rows) - _MOST_ROWS} more configurations are in leaderboard.json.\n" if len(rows) > _MOST_ROWS else ""
    )
    return f"{markdown(header, rows[:_MOST_ROWS])}{more}\n{remarks(report, ending='  ')}"[:_LONGEST_TAG]
