"""The pictures of a comparison: differences per image, and a dumbbell chart of classes."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from pipelines.comparison.result import Comparison, image_differences

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#9a9a9a")
"""Okabe and Ito's colours, which colour-blind people can distinguish, without yellow: it is hard to see on white."""
_MARKERS = "osD^vP*X"
_MOST_CLASSES = 40


def draw(comparison: Comparison) -> dict[str, bytes]:
    """Draws the pictures. Returns PNG files by name."""
    return {"differences": _png(_differences(comparison)), "classes": _png(_classes(comparison))}


def _differences(comparison: Comparison) -> Figure:
    """Draws a panel for each part and pair: differences in ascending order, their mean and its interval."""
    results = comparison.results
    num_columns = min(3, len(results))
    num_rows = -(-len(results) // num_columns)
    figure = Figure(figsize=(1.5 + 4.2 * num_columns, 1.2 + 3.2 * num_rows), layout="constrained")
    panels = figure.subplots(num_rows, num_columns, squeeze=False, sharey=True)
    for axes in panels.flat[len(results) :]:
        axes.set_visible(False)
    for axes, result in zip(panels.flat, results, strict=False):
        first, second, test = comparison.runs[result.first], comparison.runs[result.second], result.test
        differences = np.sort(image_differences(first, second, result.part))
        places = np.arange(len(differences))
        colours = np.where(differences < 0, COLOURS[result.first], COLOURS[result.second])
        axes.bar(places, differences, width=1.0, color=list(colours))
        axes.axhspan(test.low, test.high, color="#444444", alpha=0.25, label="95 % interval of the mean")
        axes.axhline(test.mean, color="#000000", linewidth=1.4, label=f"mean {test.mean:+.2f}")
        axes.axhline(0, color="#000000", linewidth=0.6)
        chance = "may be chance" if result.is_chance else "more than chance"
        names = f"{comparison.labels[result.second]} - {comparison.labels[result.first]}"
        axes.set_title(f"{result.part}: {names}, {chance}", fontsize=10)
        axes.set_xlabel(f"{test.num_pairs} images, in rising order", fontsize=9)
        axes.set_xticks([])
        axes.legend(fontsize=8, loc="upper left", frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("difference of an image's mIoU [points]", fontsize=9)
    figure.suptitle(_legend_line(comparison), fontsize=9)
    return figure


def _classes(comparison: Comparison) -> Figure:
    """Draws a panel for each part: IoU of each class, with a line that joins its runs."""
    shown = {part: comparison.class_iou(part)[:_MOST_CLASSES] for part in comparison.parts}
    most = max(len(classes) for classes in shown.values())
    figure = Figure(figsize=(1.0 + 5.0 * len(shown), 1.6 + 0.26 * most), layout="constrained")
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for axes, (part, classes) in zip(panels, shown.items(), strict=True):
        for place, (_, values) in enumerate(classes):
            known = [value for value in values if value is not None]
            if known:
                axes.plot([min(known), max(known)], [place, place], color="#9a9a9a", linewidth=2, zorder=1)
        for index, label in enumerate(comparison.labels):
            points = [(values[index], place) for place, (_, values) in enumerate(classes) if values[index] is not None]
            columns: Sequence[Sequence[float]] = list(zip(*points, strict=True)) or [(), ()]  # type: ignore[assignment]
            axes.scatter(*columns, color=COLOURS[index], marker=_MARKERS[index], s=36, label=label, zorder=2)
        axes.set_yticks(range(len(classes)), [name for name, _ in classes], fontsize=8)
        axes.invert_yaxis()
        axes.set_xlim(left=-1)
        axes.set_xlabel("IoU [%]", fontsize=9)
        total = len(comparison.class_iou(part))
        more = f" (of {total}, those that differ most)" if total > len(classes) else ""
        axes.set_title(f"{part}{more}", fontsize=10)
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    handles, _ = panels[0].get_legend_handles_labels()
    figure.legend(handles, _legend_line(comparison).split("\n"), fontsize=9, loc="outside upper center", frameon=False)
    return figure


def _legend_line(comparison: Comparison) -> str:
    return "\n".join(f"{label}: {run.name}" for label, run in zip(comparison.labels, comparison.runs, strict=True))


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()
