"""What an evaluation found: as numbers, as a table for the terminal, as a folder, and in MLflow."""

import csv
import dataclasses
import io
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from groupvit.config import to_dict
from groupvit.metrics import SegmentationMetrics, segmentation_metrics
from groupvit.segmentation import SegmentationConfig
from groupvit.visualize import confusion_picture, page
from pipelines.scoring import Scores


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartResult:
    """One part of a data set, like the scenes with cut-outs never seen in training."""

    num_scenes: int
    confusion: NDArray[np.int64]
    """[C, C], rows are the truth."""
    baselines: dict[str, NDArray[np.int64]]
    """Confusion matrices of what the model is compared with."""
    oracle: NDArray[np.int64] | None
    """Confusion matrix of the best labels the groups allow; None for a model without groups."""
    usage: list[dict[str, float]]
    """Per grouping stage: entropy, empty_rate, overlap."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """Everything an evaluation tells, ready to be shown."""

    checkpoint: str
    data: str
    data_digest: str
    classes: tuple[str, ...]
    has_background: bool
    segmentation: SegmentationConfig
    thresholds: dict[str, float | None]
    """Background threshold by method."""
    parts: dict[str, PartResult]
    num_scenes: int
    seconds: float

    def metrics(self) -> dict[str, float]:
        """Flat names like `seen/miou`, for tracking. Fractions of pixels and classes are in percent."""
        values: dict[str, float] = {}
        for name, part in self.parts.items():
            metrics = segmentation_metrics(part.confusion)
            values[f"{name}/miou"] = 100 * metrics.mean_iou
            values[f"{name}/pixel_accuracy"] = 100 * metrics.pixel_accuracy
            if part.oracle is not None:
                values[f"{name}/oracle_miou"] = 100 * segmentation_metrics(part.oracle).mean_iou
            for baseline, matrix in part.baselines.items():
                values[f"{name}/{baseline}_miou"] = 100 * segmentation_metrics(matrix).mean_iou
            for stage, usage in enumerate(part.usage):
                values |= {f"{name}/stage_{stage + 1}_group_{key}": value for key, value in usage.items()}
        return values

    def summary(self) -> dict[str, Any]:
        """JSON-safe: what metrics.json holds."""
        return {
            "checkpoint": self.checkpoint,
            "data": self.data,
            "data_digest": self.data_digest,
            "num_scenes": self.num_scenes,
            "scores": "softmax affinity of the pixel's group"
            if self.segmentation.grouping
            else "softmax affinity of the image token",
            "segmentation": to_dict(self.segmentation),
            "background_thresholds": self.thresholds,
            "metrics": self.metrics(),
            "class_iou": {
                name: dict(zip(self.classes, _percent(segmentation_metrics(part.confusion).class_iou), strict=True))
                for name, part in self.parts.items()
            },
            "seconds": round(self.seconds, 2),
            "scenes_per_second": round(self.num_scenes / self.seconds, 2),
        }


def table(report: EvaluationReport) -> str:
    """Two text tables: parts by metric, and classes by part. Percent."""
    names = list(report.parts)
    values = report.metrics()
    keys = list(dict.fromkeys(key.split("/", 1)[1] for key in values))
    lines = [f"{report.num_scenes} scenes of {report.data} in {report.seconds:.1f} s"]
    lines.append("background threshold: " + ", ".join(f"{name} {value}" for name, value in report.thresholds.items()))
    lines += [
        "",
        *_aligned(["", *names], [[key, *(_number(values.get(f"{name}/{key}")) for name in names)] for key in keys]),
    ]
    lines += ["", *_aligned(*_class_rows(report)), ""]
    return "\n".join(lines)


def write_report(report: EvaluationReport, scores: Scores, out: Path, *, save_predictions: bool) -> None:
    """Writes metrics.json, per_class.*, predictions/SCENE.png and, per part, confusion_PART.* and examples_PART.png."""
    out.mkdir(parents=True, exist_ok=True)
    header, rows = _class_rows(report)
    (out / "per_class.csv").write_text(_csv([header, *rows]))
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    (out / "per_class.md").write_text("".join(f"| {' | '.join(line)} |\n" for line in lines))
    for name, part in report.parts.items():
        counts = [["truth \\ prediction", *report.classes]]
        counts += [[label, *map(str, row)] for label, row in zip(report.classes, part.confusion.tolist(), strict=True)]
        (out / f"confusion_{name}.csv").write_text(_csv(counts))
        confusion_picture(part.confusion, report.classes).save(out / f"confusion_{name}.png")
        if examples := [scores.examples[key] for key in sorted(scores.examples) if key[0] == name]:
            percent = 100 * segmentation_metrics(part.confusion).mean_iou
            heading = f"{name}: mIoU {percent:.1f} % over {part.num_scenes} images"
            drawn = page(examples, report.classes, has_background=report.has_background, heading=heading)
            drawn.save(out / f"examples_{name}.png")
    if save_predictions:
        (out / "predictions").mkdir(exist_ok=True)
        for scene, encoded in scores.predictions.items():
            (out / "predictions" / f"{scene:06d}.png").write_bytes(encoded)
    # Last: a folder with metrics.json is complete.
    (out / "metrics.json").write_text(json.dumps(report.summary(), indent=2, allow_nan=False) + "\n")


def log_to_mlflow(report: EvaluationReport, out: Path, run_id: str, tracking_uri: str | None) -> None:
    """Adds metrics, tables and pictures (not the predictions) to an existing run, under evaluation/."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric
    from mlflow.exceptions import MlflowException

    client = MlflowClient(tracking_uri=tracking_uri)
    now = time.time_ns() // 1_000_000
    try:
        client.log_batch(
            run_id, metrics=[Metric(f"evaluation/{key}", value, now, 0) for key, value in report.metrics().items()]
        )
    except MlflowException as error:
        raise ValueError(f"mlflow_run={run_id} cannot be written to: {error}") from None
    for file in sorted(out.iterdir()):
        if file.is_file():
            client.log_artifact(run_id, str(file), "evaluation")


def _class_rows(report: EvaluationReport) -> tuple[list[str], list[list[str]]]:
    """Header and rows: IoU and share of pixels found, of each class and part."""
    metrics = {name: segmentation_metrics(part.confusion) for name, part in report.parts.items()}
    header = ["class", *(f"{name} {what}" for name in metrics for what in ("IoU", "found"))]

    def row(index: int, values: Sequence[SegmentationMetrics]) -> list[str]:
        return [
            _number(100 * float(value))
            for item in values
            for value in (item.class_iou[index], item.class_accuracy[index])
        ]

    return header, [[name, *row(index, list(metrics.values()))] for index, name in enumerate(report.classes)]


def _aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(line[column]) for line in [header, *rows]) for column in range(len(header))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in [header, ["-" * width for width in widths], *rows]
    ]


def _csv(lines: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.2f}"


def _percent(values: NDArray[np.float64]) -> list[float | None]:
    return [None if math.isnan(value) else round(100 * float(value), 3) for value in values]
