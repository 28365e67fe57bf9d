"""Pictures of a sweep: bars with seeds, learning curves, parallel coordinates, importance of parameters.

Colours are those of Okabe and Ito, and cividis for scores. Colour-blind readers can distinguish both.
"""

import io
import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pipelines.sweeps.report.importance import is_logarithmic, is_scale
from pipelines.sweeps.report.summary import Configuration, SweepReport, last_score, short_names, text

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, without the yellow, which is hard to see on white."""
GREY = "#9a9a9a"
MIOU = "zero-shot mIoU [%]"
_MOST_BARS = 20
_MOST_LETTERS = 26
_APART = 0.05
_MARKERS = {"finished": "o", "stopped": "X", "failed": "v", "running": ">"}
_SIZES = {"finished": 5, "stopped": 9, "failed": 8, "running": 7}


def draw(report: SweepReport) -> dict[str, bytes]:
    """Return the pictures as PNG files, by name."""
    drawn = {
        "leaderboard": _leaderboard(report),
        "learning_curves": _learning_curves(report),
        "parallel_coordinates": _parallel_coordinates(report),
        "parameter_importance": _parameter_importance(report),
    }
    return {name: _png(figure) for name, figure in drawn.items()}


def _leaderboard(report: SweepReport) -> Figure:
    ranked = [each for each in report.configurations if each.mean is not None]
    if not ranked:
        return _words("No trial has finished yet.")
    shown = ranked[:_MOST_BARS]
    labels = [_wrapped(report.label(each), 44) for each in shown]
    num_lines = sum(label.count("\n") + 1 for label in labels)
    figure, axes = _axes(9, 1.5 + 0.22 * num_lines + 0.22 * len(shown))
    for place, each in enumerate(shown):
        colour = _colour(report, each)
        axes.barh(place, each.mean or 0.0, height=0.62, color=colour, alpha=0.45, xerr=each.deviation, capsize=4)
        offsets = [place + 0.3 * (index + 1) / (len(each.scores) + 1) - 0.15 for index in range(len(each.scores))]
        axes.plot(list(each.scores.values()), offsets, "o", color=colour, markeredgecolor="white", markersize=6)
    axes.set_yticks(range(len(shown)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel(f"{MIOU}: mean ± s.d. over seeds, a dot for each seed")
    more = f" (the best {len(shown)} of {len(ranked)})" if len(ranked) > len(shown) else ""
    figure.suptitle(f"Configurations by mean{more}{_names(report)}", fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    return figure


def _learning_curves(report: SweepReport) -> Figure:
    coloured = report.configurations[: len(COLOURS)]
    labels = [_wrapped(report.label(each), 44) for each in coloured]
    figure, axes = _axes(11, 5.5)
    marked: set[str] = set()
    for each in reversed(report.configurations):  # the best on top
        for trial in each.trials:
            points = [(step, score) for step, score in sorted(trial.scores.items()) if math.isfinite(score)]
            if not points:
                continue
            steps, scores = zip(*points, strict=True)
            colour = _colour(report, each)
            axes.plot(steps, scores, "-", color=colour, alpha=0.5 if colour == GREY else 0.9, linewidth=1.4)
            if len(points) > 2:
                axes.plot(steps[:-1], scores[:-1], ".", color=colour, markersize=4)
            marker, size = _MARKERS[trial.status], _SIZES[trial.status]
            axes.plot(steps[-1], scores[-1], marker, color=colour, markeredgecolor="white", markersize=size)
            marked.add(trial.status)
    if not marked:
        return _words("No trial has been scored yet.")
    handles = [
        Line2D([], [], color=_colour(report, each), label=label) for each, label in zip(coloured, labels, strict=True)
    ]
    if others := len(report.configurations) - len(coloured):
        handles.append(Line2D([], [], color=GREY, label=f"{others} other configurations"))
    for status in _MARKERS:
        if status in marked:
            style = {"marker": _MARKERS[status], "markersize": _SIZES[status], "linestyle": "", "color": "#444444"}
            handles.append(Line2D([], [], label=f"{status} here", **style))
    axes.legend(handles=handles, fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    axes.set_xlabel("training step")
    axes.set_ylabel(MIOU)
    figure.suptitle(f"Every trial at its rungs, coloured by configuration{_names(report)}", fontsize=10)
    axes.grid(alpha=0.3)
    return figure


def _parallel_coordinates(report: SweepReport) -> Figure:
    scored = [trial for trial in report.trials if last_score(trial) is not None]
    if not report.varied or not scored:
        return _words("No parameter was varied." if not report.varied else "No trial has been scored yet.")
    names = short_names(report.varied)
    figure, axes = _axes(max(9.0, 2.0 + 1.75 * len(report.varied)), 5.0)
    lanes = [_lane([trial.values.get(name) for trial in report.trials]) for name in report.varied]
    scores = [last_score(trial) or 0.0 for trial in scored]
    low, high = min(scores), max(scores)
    lanes.append(_scale_lane([low, high], logarithmic=False))
    colours = ScalarMappable(Normalize(low, high if high > low else low + 1), colormaps["cividis_r"])
    place = {id(trial): index for index, trial in enumerate(report.trials)}
    rgba = colours.to_rgba(np.array(scores))
    for number in np.argsort(scores):
        trial, score = scored[number], scores[number]
        height = 0.5 if high == low else (score - low) / (high - low)
        # Trials of one configuration are drawn side by side, the better one above. Otherwise their lines would overlap.
        apart = _APART * (height - 0.5)
        heights = [*(positions[place[id(trial)]] + apart for positions, _ in lanes[:-1]), height]
        style = "-" if trial.status in ("finished", "running") else (0, (4, 2))
        axes.plot(range(len(lanes)), heights, color=rgba[number], linewidth=2, linestyle=style, alpha=0.85)
    for lane, (_, ticks) in enumerate(lanes):
        axes.axvline(lane, color="#444444", linewidth=1)
        for height, label in ticks:
            axes.annotate(
                label,
                (lane, height),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1},
                zorder=5,
            )
    axes.set_xticks(range(len(lanes)), [*(_wrapped(names[name], 17) for name in report.varied), "mIoU [%]"], fontsize=9)
    axes.xaxis.tick_top()
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(lanes) - 0.65)
    axes.set_ylim(-0.05, 1.05)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    stopped = any(trial.status in ("stopped", "failed") for trial in scored)
    dashed = "; dashed: stopped or failed there" if stopped else ""
    figure.supxlabel(f"a line for each trial, its colour the mIoU at its last rung{dashed}", fontsize=9)
    figure.colorbar(colours, ax=axes, label=MIOU, fraction=0.03, pad=0.02)
    return figure


def _parameter_importance(report: SweepReport) -> Figure:
    importance = report.importance
    if not importance.shares:
        return _words(f"Importance of parameters: {importance.note}.")
    names = short_names(report.varied)
    shares = list(importance.shares.items())
    figure, axes = _axes(9, 1.6 + 0.42 * len(shares))
    bars = axes.barh(range(len(shares)), [share for _, share in shares], color=COLOURS[0], height=0.62)
    axes.bar_label(bars, [f"{share:.2f}" for _, share in shares], padding=4, fontsize=9)
    axes.set_yticks(range(len(shares)), [_wrapped(names[name], 30) for name, _ in shares])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.08)
    axes.set_xlabel("\n".join(textwrap.wrap(importance.note, 100)), fontsize=9)
    figure.suptitle("Importance of parameters", fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    return figure


def _lane(column: Sequence[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """Return the positions of a parameter's values on its axis, from 0 to 1, and the labels of the axis."""
    if is_scale(column):
        return _scale_lane(column, logarithmic=is_logarithmic(column))
    levels = sorted(set(map(text, column)), key=lambda level: _level_order(level, column))
    heights = {level: index / max(1, len(levels) - 1) for index, level in enumerate(levels)}
    labels = [
        (height, level if len(level) <= _MOST_LETTERS else level[: _MOST_LETTERS - 1] + "…")
        for level, height in heights.items()
    ]
    every = math.ceil(len(labels) / 24)  # more labels would overlap
    return [heights[text(value)] for value in column], labels[::every]


def _level_order(level: str, column: Sequence[Any]) -> tuple[bool, float, str]:
    """Sort key: numbers by their size, then other values by their text."""
    value = next(value for value in column if text(value) == level)
    is_number = isinstance(value, (int, float))
    return (not is_number, float(value) if is_number else 0.0, level)


def _scale_lane(column: Sequence[float], *, logarithmic: bool) -> tuple[list[float], list[tuple[float, str]]]:
    points = [math.log10(value) if logarithmic else float(value) for value in column]
    low, high = min(points), max(points)
    if high == low:
        return [0.5] * len(points), [(0.5, f"{column[0]:.3g}")]
    marks = [low + (high - low) * part / 4 for part in range(5)]
    labels = [(part / 4, f"{10**mark if logarithmic else mark:.3g}") for part, mark in enumerate(marks)]
    return [(point - low) / (high - low) for point in points], labels


def _names(report: SweepReport) -> str:
    """Return title lines with the names of the parameters, which short labels leave out."""
    if not report.has_short_labels:
        return ""
    return "\n" + "\n".join(textwrap.wrap(", ".join(short_names(report.varied).values()), 100))


def _colour(report: SweepReport, configuration: Configuration) -> str:
    place = report.configurations.index(configuration)
    return COLOURS[place] if place < len(COLOURS) else GREY


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _words(sentence: str) -> Figure:
    """Return a picture with a sentence that says why nothing is drawn."""
    figure = Figure(figsize=(9, 2), layout="constrained")
    figure.text(0.5, 0.5, "\n".join(textwrap.wrap(sentence, 80)), ha="center", va="center", fontsize=12)
    return figure


def _wrapped(label: str, width: int) -> str:
    """Return the label in at most three lines, broken at spaces, else after dots and underscores."""
    spaced = label if " " in label else label.replace("_", "_\u200b").replace(".", ".\u200b")
    lines: list[str] = [""]
    for piece in spaced.replace("\u200b", "\n").replace(" ", " \n").split("\n"):
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    lines = [line.rstrip() for line in lines]
    return "\n".join(lines if len(lines) <= 3 else [*lines[:2], lines[2][: width - 2] + " …"])


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()
