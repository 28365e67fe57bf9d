"""The numbers of a comparison: metrics, classes, how the models were trained, and which differences may be chance."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from groupvit.config import flatten
from pipelines.comparison.significance import ALPHA, PairedTest, holm, paired_test, shown
from pipelines.comparison.source import ComparedRun
from pipelines.console.tables import number

_WHERE_NOT_WHAT = ("training.runs_folder", "training.run_name", "training.record_samples", "tracking.", "evaluation.")
"""Prefixes of the names of parameters that do not change a model."""
CAVEAT = (
    "This is about these models on these images. It is not about seeds: two trainings of one configuration may differ "
    "by 10 points and more, so to say that one configuration is better takes several seeds of each (groupvit sweep)."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairResult:
    """Comparison of two runs on one part."""

    part: str
    first: int
    second: int
    test: PairedTest
    """Test of the second run's mIoU of an image minus the first run's, in points, over the images that both have."""
    p_value: float
    """p-value corrected for the number of pairs and parts (Holm)."""

    @property
    def is_chance(self) -> bool:
        """Whether the difference could be chance."""
        return self.p_value >= ALPHA


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Evaluations of the same images, and the comparison of each pair."""

    runs: tuple[ComparedRun, ...]
    results: tuple[PairResult, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(self.runs)])

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(self.runs[0].summary["class_iou"])

    def metric_table(self, part: str) -> tuple[list[str], list[list[str]]]:
        """Returns header and rows: each metric of the part by run. Two runs get a column with their difference."""
        prefix = f"{part}/"
        names = list(
            dict.fromkeys(name for run in self.runs for name in run.summary["metrics"] if name.startswith(prefix))
        )
        rows = [
            [name.removeprefix(prefix), *_values([run.summary["metrics"].get(name) for run in self.runs])]
            for name in names
        ]
        return [part, *self._columns()], rows

    def class_table(self, part: str) -> tuple[list[str], list[list[str]]]:
        """Returns header and rows: IoU in percent of each class by run. Classes that differ most come first."""
        rows = [[name, *_values(values)] for name, values in self.class_iou(part)]
        return [f"IoU, {part}", *self._columns()], rows

    def class_iou(self, part: str) -> list[tuple[str, list[float | None]]]:
        """Returns the IoU in percent of each class by run. Classes that differ most come first."""
        names = list(self.runs[0].summary["class_iou"][part])
        found = [(name, [run.summary["class_iou"][part].get(name) for run in self.runs]) for name in names]
        return sorted(found, key=lambda pair: -_spread(pair[1]))

    def difference_table(self) -> tuple[list[str], list[list[str]]]:
        """Returns header and rows: the settings of training and segmentation that differ."""
        settings = [_settings(run) for run in self.runs]
        names = list(dict.fromkeys(name for each in settings for name in each))
        rows = [[name, *(each.get(name, "-") for each in settings)] for name in names]
        return ["setting", *self.labels], [row for row in rows if len(set(row[1:])) > 1]

    def sentence(self, result: PairResult) -> str:
        """Describes the difference of two runs on a part in one sentence."""
        first, second, test = self.labels[result.first], self.labels[result.second], result.test
        if test.num_better == test.num_worse == 0:
            return f"{result.part}: {first} and {second} are the same on each of {test.num_pairs} images"
        corrected = "" if len(self.results) == 1 else f", Holm-corrected {shown(result.p_value)}"
        effect = "" if test.effect is None else f", {abs(test.effect):.2f} s.d. of a difference"
        better = second if test.mean > 0 else first
        said = "the difference may be chance" if result.is_chance else f"{better} is better, by more than chance"
        counts = f"n = {test.num_pairs} images, better on {test.num_better}, worse on {test.num_worse}"
        interval = f"95 % CI {test.low:+.2f} to {test.high:+.2f}{effect}"
        return (
            f"{result.part}: {second} - {first} = {test.mean:+.2f} points of an image's mIoU ({interval}), {counts}; "
            f"{shown(test.p_value)}{corrected}: {said}"
        )

    def summary(self) -> dict[str, Any]:
        """Returns the content of comparison.json, as JSON-safe values."""
        return {
            "benchmark": self.runs[0].summary["benchmark"],
            "data_digest": self.runs[0].summary["data_digest"],
            "runs": [
                {"label": label, "name": run.name, "source": run.source, "metrics": run.summary["metrics"]}
                for label, run in zip(self.labels, self.runs, strict=True)
            ],
            "differences": [
                {
                    "part": result.part,
                    "first": self.labels[result.first],
                    "second": self.labels[result.second],
                    **dataclasses.asdict(result.test),
                    "p_value_corrected": result.p_value,
                    "may_be_chance": result.is_chance,
                    "says": self.sentence(result),
                }
                for result in self.results
            ],
            "class_iou": {part: dict(self.class_iou(part)) for part in self.parts},
            "settings": {name: values for name, *values in self.difference_table()[1]},
            "caveat": CAVEAT,
        }

    def _columns(self) -> list[str]:
        return [*self.labels, "B - A"] if len(self.runs) == 2 else [*self.labels]


def compare_runs(runs: Sequence[ComparedRun]) -> Comparison:
    """Compares each pair of runs over the images that both have. All runs must have the same benchmark and parts."""
    found: list[tuple[str, int, int, PairedTest]] = []
    for part in runs[0].summary["class_iou"]:
        for first, second in itertools.combinations(range(len(runs)), 2):
            if len(differences := image_differences(runs[first], runs[second], part)):
                found.append((part, first, second, paired_test(differences)))
    p_values = holm([test.p_value for *_, test in found])
    results = [
        PairResult(part=part, first=first, second=second, test=test, p_value=p_value)
        for (part, first, second, test), p_value in zip(found, p_values, strict=True)
    ]
    return Comparison(runs=tuple(runs), results=tuple(results))


def image_differences(first: ComparedRun, second: ComparedRun, part: str) -> np.ndarray:
    """Returns `second`'s mIoU minus `first`'s in points, for each image of the part that both have: float64 [N]."""
    keys = sorted(key for key in first.image_iou if key[0] == part and key in second.image_iou)
    return np.array([second.image_iou[key] - first.image_iou[key] for key in keys], dtype=np.float64)


def _settings(run: ComparedRun) -> dict[str, str]:
    keys = ("checkpoint", "step", "license", "protocol", "precision", "segmentation", "background_thresholds", "words")
    chosen = flatten({key: run.summary.get(key) for key in keys} | {"images": len(run.image_iou)})
    trained = {name: value for name, value in run.config.items() if not name.startswith(_WHERE_NOT_WHAT)}
    return {name: str(value) for name, value in chosen.items()} | trained


def _values(values: Sequence[float | None]) -> list[str]:
    cells = [number(value) for value in values]
    if len(values) != 2:
        return cells
    first, second = values
    return [*cells, "-" if first is None or second is None else f"{second - first:+.2f}"]


def _spread(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return max(known) - min(known) if len(known) > 1 else 0.0
