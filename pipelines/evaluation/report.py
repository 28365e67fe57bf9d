"""The results of an evaluation: as numbers, as a table for the terminal, as a folder, and in MLflow."""

import dataclasses
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from groupvit.config import SegmentationConfig, to_dict
from groupvit.metrics import GroupUsage, mean_boundary_iou, segmentation_metrics
from groupvit.visualize import confusion_picture, page
from pipelines.benchmarks.published import PUBLISHED
from pipelines.console.tables import aligned, count_of, csv_text, markdown, number
from pipelines.evaluation.methods import described
from pipelines.evaluation.scoring import Scores
from pipelines.local.writable import check_writable
from pipelines.tracking.errors import one_line
from pipelines.tracking.runs import LICENSE_TAG, retry_few_requests


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartResult:
    """Results on one part of a data set, e.g. the scenes with cut-outs that are not in the training data."""

    num_scenes: int
    confusion: NDArray[np.int64]
    """Confusion matrix [C, C]; rows are the ground truth."""
    baselines: dict[str, NDArray[np.int64]]
    """Confusion matrices of the baselines, by name."""
    oracle: NDArray[np.int64] | None
    """Confusion matrix of the best labels that the groups allow. None: a model without groups."""
    boundary: NDArray[np.int64]
    """Intersections and unions near the edges of masks, [C, 2]."""
    usage: list[GroupUsage]
    """Mean use of groups over images, one entry per grouping stage."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """All results of an evaluation."""

    checkpoint: str
    benchmark: str
    root: str
    data_digest: str
    step: int
    """Number of training steps of the checkpoint; 0 if it is unknown."""
    license: str | None
    """Licence notice of the checkpoint, or None."""
    classes: tuple[str, ...]
    words: tuple[tuple[str, ...], ...]
    """Words of the prompts of each class except the background."""
    has_background: bool
    protocol: Literal["model", "paper", "unified"]
    changed_words: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    """Words given by the user, in place of the benchmark's, by class."""
    rules_changed: bool
    """Whether settings replace rules of the protocol, so that published numbers are not comparable."""
    segmentation: SegmentationConfig
    precision: str
    """Precision of the image tower."""
    thresholds: dict[str, float | None]
    """Background threshold by method."""
    parts: dict[str, PartResult]
    num_scenes: int
    seconds: float
    official_counts: tuple[int, ...] = ()
    """Number of images in each official list of the benchmark. Published numbers are of these images."""

    def metrics(self) -> dict[str, float]:
        """Returns metrics for tracking by flat names like `seen/miou`. Shares of pixels and classes are in percent."""
        values: dict[str, float] = {}
        for name, part in self.parts.items():
            metrics = segmentation_metrics(part.confusion)
            values[f"{name}/miou"] = 100 * metrics.mean_iou
            values[f"{name}/pixel_accuracy"] = 100 * metrics.pixel_accuracy
            values[f"{name}/boundary_miou"] = 100 * mean_boundary_iou(part.boundary)
            if part.oracle is not None:
                values[f"{name}/oracle_miou"] = 100 * segmentation_metrics(part.oracle).mean_iou
            for baseline, matrix in part.baselines.items():
                values[f"{name}/{baseline}_miou"] = 100 * segmentation_metrics(matrix).mean_iou
            for stage, usage in enumerate(part.usage):
                numbers = dataclasses.asdict(usage)
                values |= {f"{name}/stage_{stage + 1}_group_{key}": value for key, value in numbers.items()}
        return values

    def summary(self) -> dict[str, Any]:
        """Returns the content of metrics.json, as JSON-safe values."""
        return {
            "checkpoint": self.checkpoint,
            "step": self.step,
            "license": self.license,
            "benchmark": self.benchmark,
            "root": self.root,
            "data_digest": self.data_digest,
            "num_scenes": self.num_scenes,
            "num_images": self.num_scenes,
            "official_num_images": self.official_num_images,
            "protocol": self.protocol,
            "precision": self.precision,
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
            "class_share": {
                name: dict(zip(self.classes, _percent(_shares(part.confusion)), strict=True))
                for name, part in self.parts.items()
            },
            "words": dict(zip(self.classes[int(self.has_background) :], map(list, self.words), strict=True)),
            "changed_words": {name: list(words) for name, words in self.changed_words.items()},
            "published": dict(self.published),
            "seconds": round(self.seconds, 2),
            "scenes_per_second": round(self.num_scenes / self.seconds, 2),
        }

    @property
    def official_num_images(self) -> int | None:
        """Length of the official list that was evaluated, else of the longest list. None if there is no list."""
        return self.num_scenes if self.num_scenes in self.official_counts else max(self.official_counts, default=None)

    @property
    def comparable(self) -> tuple[tuple[str, str], ...]:
        """(model, mIoU in percent) as published for this benchmark and protocol. Empty if the protocol's rules were
        changed."""
        if self.protocol == "model" or self.rules_changed or self.changed_words:
            return ()
        return PUBLISHED.get((self.protocol, self.benchmark), ())

    @property
    def published(self) -> tuple[tuple[str, str], ...]:
        """The comparable numbers, if all images were evaluated. Empty otherwise."""
        return self.comparable if self.num_scenes == self.official_num_images else ()


def check_out(out: str) -> None:
    """Raises ValueError unless `out` is a folder of this machine that can be written."""
    if "://" in out:
        raise ValueError(f"out={out} is not a path: results are written on this machine; give a local folder")
    check_writable(out, "out")


def image_counts(summary: Mapping[str, Any]) -> dict[str, float]:
    """Returns, for tracking, the number of evaluated images, and the official number if known, from metrics.json."""
    counts = {name: summary[name] for name in ("num_images", "official_num_images")}
    return {f"{summary['benchmark']}/{name}": count for name, count in counts.items() if count is not None}


def table(report: EvaluationReport) -> str:
    """Formats two text tables in percent: parts by metric, and classes by part."""
    names = list(report.parts)
    values = report.metrics()
    keys = list(dict.fromkeys(key.split("/", 1)[1] for key in values))
    images = count_of(report.num_scenes, report.official_num_images)
    settings = described(report.protocol, report.segmentation, report.precision, report.changed_words)
    lines = [f"{report.benchmark}: {images} images of {report.root} in {report.seconds:.1f} s", settings]
    if len(report.thresholds) > 1:
        shown = ", ".join(f"{name} {value}" for name, value in report.thresholds.items())
        lines.append(f"background threshold: {shown}")
    if report.published:
        lines.append("published: " + ", ".join(f"{model} {miou}" for model, miou in report.published))
    elif report.comparable:
        lines.append(f"published numbers are left out: they are of {report.official_num_images:,} images")
    if report.license is not None:
        lines.append(f"licence of the weights: {report.license}")
    lines += [
        "",
        *aligned(["", *names], [[key, *(number(values.get(f"{name}/{key}")) for name in names)] for key in keys]),
    ]
    lines += ["", *aligned(*_class_rows(report, others=False)), ""]
    return "\n".join(lines)


def comparison(summaries: Mapping[str, Mapping[str, Any]], left_out: Mapping[str, str]) -> str:
    """Formats a text table with a row per benchmark and part, and why other benchmarks are missing."""
    keys = ("miou", "oracle_miou", "boundary_miou", "pixel_accuracy")
    rows = []
    for benchmark, summary in summaries.items():
        for part in summary["class_iou"]:
            numbers = [number(summary["metrics"].get(f"{part}/{key}")) for key in keys]
            published = ", ".join(f"{model} {miou}" for model, miou in summary["published"].items())
            name = benchmark if part == benchmark else f"{benchmark}, {part}"
            images = count_of(summary["num_images"], summary["official_num_images"])
            rows.append([name, images, summary["protocol"], *numbers, published])
    header = ["benchmark", "images", "protocol", "mIoU", "oracle", "boundary", "pixels", "published mIoU"]
    lines = aligned(header, rows)
    lines += ["", *(f"left out: {name}: {reason}" for name, reason in left_out.items())] if left_out else []
    return "\n".join(lines)


def write_report(report: EvaluationReport, scores: Scores, out: Path, *, save_predictions: bool) -> None:
    """Writes metrics.json, per_class.*, per_image.csv, predictions/SCENE.png and, per part, confusion_PART.* and
    examples_PART.png.
    """
    out.mkdir(parents=True, exist_ok=True)
    header, rows = _class_rows(report, others=True)
    (out / "per_class.csv").write_text(csv_text([header, *rows]), encoding="utf-8")
    (out / "per_class.md").write_text(markdown(header, rows), encoding="utf-8")
    per_image = [["scene", "sample_id", "part", "miou", "pixel_accuracy"]]
    for scene, result in sorted(scores.scenes.items()):
        numbers = [number(100 * result.mean_iou), number(100 * result.pixel_accuracy)]
        per_image.append([str(scene), result.sample_id, result.part, *numbers])
    (out / "per_image.csv").write_text(csv_text(per_image), encoding="utf-8")
    for name, part in report.parts.items():
        counts = [["truth \\ prediction", *report.classes]]
        counts += [[label, *map(str, row)] for label, row in zip(report.classes, part.confusion.tolist(), strict=True)]
        (out / f"confusion_{name}.csv").write_text(csv_text(counts), encoding="utf-8")
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
    # Written last: a folder with metrics.json is complete.
    (out / "metrics.json").write_text(json.dumps(report.summary(), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def log_to_mlflow(
    metrics: Mapping[str, float],
    license_notice: str | None,
    out: Path,
    run_id: str,
    tracking_uri: str | None,
    *,
    step: int,
    folder: str = "evaluation",
) -> None:
    """Adds metrics, the tables and pictures in `out` (not the predictions) and the licence of the weights to an
    existing run. Metrics are logged under evaluation/ at the checkpoint's step, files under `folder`."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric, RunTag

    now = time.time_ns() // 1_000_000
    tags = [] if license_notice is None else [RunTag(LICENSE_TAG, license_notice[:5000])]
    with one_line(tracking_uri):
        client = MlflowClient(tracking_uri=tracking_uri)
        client.log_batch(
            run_id,
            metrics=[Metric(f"evaluation/{key}", value, now, step) for key, value in metrics.items()],
            tags=tags,
        )
        for file in sorted(out.iterdir()):
            if file.is_file():
                client.log_artifact(run_id, str(file), folder)


def check_mlflow_run(run_id: str, tracking_uri: str | None) -> None:
    """Raises ValueError if MLflow has no such run, or if it cannot be written to."""
    from mlflow import MlflowClient

    retry_few_requests()
    with one_line(tracking_uri):
        client = MlflowClient(tracking_uri=tracking_uri)
        # Writes the name that the run already has, to check that it can be written to.
        client.set_tag(run_id, "mlflow.runName", client.get_run(run_id).info.run_name)


def _class_rows(report: EvaluationReport, *, others: bool) -> tuple[list[str], list[list[str]]]:
    """Returns the header and the rows, for each class and part: IoU, share of its pixels that were found, and its share
    of all pixels, which is the IoU of labelling everything as this class. With `others`, also the IoU of the baselines
    and the oracle."""
    columns: dict[str, NDArray[np.float64]] = {}
    for name, part in report.parts.items():
        metrics = segmentation_metrics(part.confusion)
        columns |= {f"{name} IoU": metrics.class_iou, f"{name} found": metrics.class_accuracy}
        columns[f"{name} everywhere"] = _shares(part.confusion)
        if others:
            matrices = part.baselines if part.oracle is None else {**part.baselines, "oracle": part.oracle}
            columns |= {f"{name} {key}": segmentation_metrics(matrix).class_iou for key, matrix in matrices.items()}
    rows = [
        [label, *(number(100 * float(column[index])) for column in columns.values())]
        for index, label in enumerate(report.classes)
    ]
    return ["class", *columns], rows


def _shares(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share of the labelled pixels that each class has."""
    return confusion.sum(axis=1) / max(confusion.sum(), 1)


def _percent(values: NDArray[np.float64]) -> list[float | None]:
    return [None if math.isnan(value) else round(100 * float(value), 3) for value in values]
