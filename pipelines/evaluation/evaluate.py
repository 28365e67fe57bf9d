"""Zero-shot segmentation of a benchmark, by several workers, with an exact result.

    groupvit evaluate --checkpoint runs/demo --root data/stamps/validation --calibration data/stamps/calibration
    groupvit evaluate --checkpoint C --benchmark voc21 --root DIR --protocol paper
    groupvit evaluate --checkpoint C --benchmark all --root DIR --protocol unified --num-workers 8

The result does not depend on the number of workers. On CPUs it does not depend on the batch size, either: the image
tower gives the same bits for a window, and only pixel counts are summed.
"""

import dataclasses
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from groupvit.captions import SEGMENTATION_TEMPLATE_SETS
from groupvit.checkpoint import load, load_state
from groupvit.config import Precision, Protocol, SegmentationConfig
from groupvit.interop.model_card import license_of
from groupvit.metrics import segmentation_metrics
from groupvit.model import GroupViT
from groupvit.protocols import protocol_of
from pipelines.benchmarks.catalogue import BENCHMARKS
from pipelines.benchmarks.dataset import SegmentationDataset
from pipelines.benchmarks.published import PAPER_THRESHOLDS
from pipelines.console.progress import ProgressLine
from pipelines.evaluation.classification import classify_images
from pipelines.evaluation.config import EvaluateConfig
from pipelines.evaluation.report import (
    EvaluationReport,
    PartResult,
    check_mlflow_run,
    comparison,
    image_counts,
    log_to_mlflow,
    table,
    write_report,
)
from pipelines.evaluation.retrieval import retrieve
from pipelines.evaluation.scoring import Method, Scorer, Scores, Task, mean_usage, score_all
from pipelines.evaluation.workers import ModelWorkers, model_workers, resolved_precision
from pipelines.local.writable import check_writable
from pipelines.runs.checkpoints import local_checkpoint
from pipelines.tracking.places import check_database

CANDIDATE_THRESHOLDS = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5),
    *(0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999),
)
"""Background thresholds to try on calibration scenes. Dense near 0 and 1: scores of many and few classes lie there."""

GROUPS, NO_GROUPING = "groups", "no_grouping"
_OF_WHOLE_IMAGES = {"imagenet": classify_images, "retrieval": retrieve}


def evaluate(
    config: EvaluateConfig, segmentation: SegmentationConfig | None = None, *, show: bool = True
) -> dict[str, Any]:
    """Evaluates, writes the folder, and returns the content of its metrics.json. `show` prints progress and a table.

    For `all`, returns one such dict per benchmark, and the reasons why others were left out. `segmentation` replaces
    the protocol. Raises ValueError for invalid arguments or data.
    """
    if "://" in config.out:
        raise ValueError(f"out={config.out} is not a path: results are written on this machine; give a local folder")
    check_writable(config.out, "out")
    if config.mlflow_run is not None:
        check_database(config.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI"), "tracking_uri")
        check_mlflow_run(config.mlflow_run, config.tracking_uri)
    if config.benchmark in _OF_WHOLE_IMAGES:
        return _of_whole_images(config)
    datasets, left_out = _open(config)
    with local_checkpoint(config.checkpoint) as folder:
        model, state = load(folder), load_state(folder)
    resources = {"cpus_per_worker": config.cpus_per_worker, "gpus_per_worker": config.gpus_per_worker}
    summaries: dict[str, dict[str, Any]] = {}
    with model_workers(Scorer, model, config.num_workers, **resources) as workers:
        precision = resolved_precision(workers, config.precision)
        for dataset in datasets:
            out = Path(config.out) / dataset.benchmark if config.benchmark == "all" else Path(config.out)
            chosen = segmentation or segmentation_for(config, dataset, model, state)
            summaries[dataset.benchmark] = _evaluate_one(config, dataset, chosen, workers, precision, out, state, show)
    if config.benchmark != "all":
        return next(iter(summaries.values()))
    print(comparison(summaries, left_out))
    return {"benchmarks": summaries, "left_out": left_out}


def segmentation_for(
    config: EvaluateConfig, dataset: SegmentationDataset, model: GroupViT, state: dict[str, Any]
) -> SegmentationConfig:
    """Returns the settings for segmenting this benchmark under the config's protocol."""
    protocol = _protocol(config, dataset)
    segmentation = protocol_of(protocol, model, state, with_pamr=config.pamr)
    if protocol == "paper":
        threshold = PAPER_THRESHOLDS.get(dataset.benchmark, segmentation.background_threshold)
        segmentation = dataclasses.replace(segmentation, background_threshold=threshold)
    if config.templates is not None:
        segmentation = dataclasses.replace(segmentation, templates=SEGMENTATION_TEMPLATE_SETS[config.templates])
    return segmentation


def _protocol(config: EvaluateConfig, dataset: SegmentationDataset) -> Protocol:
    return config.protocol or ("model" if dataset.benchmark in ("scenes", "folder") else "paper")


def _of_whole_images(config: EvaluateConfig) -> dict[str, Any]:
    """Runs a benchmark that has no masks, and logs its result."""
    summary = _OF_WHOLE_IMAGES[config.benchmark](config)
    if config.mlflow_run is not None:
        metrics = {f"{config.benchmark}/{name}": value for name, value in summary["metrics"].items()}
        names = metrics | image_counts(summary)
        log_to_mlflow(
            names,
            summary["license"],
            Path(config.out),
            config.mlflow_run,
            config.tracking_uri,
            step=summary["step"],
        )
    return summary


def _open(config: EvaluateConfig) -> tuple[list[SegmentationDataset], dict[str, str]]:
    """Returns the data sets to evaluate, and why others are left out. Raises ValueError if there is none."""
    if config.benchmark != "all":
        return [BENCHMARKS[config.benchmark](config.root)], {}
    datasets: list[SegmentationDataset] = []
    left_out: dict[str, str] = {}
    for name, open_benchmark in BENCHMARKS.items():
        try:
            datasets.append(open_benchmark(config.root))
        except ValueError as error:
            left_out[name] = str(error)
    if not datasets:
        raise ValueError(f"root={config.root} holds no benchmark; of the first: {next(iter(left_out.values()))}")
    return datasets, left_out


def _evaluate_one(
    config: EvaluateConfig,
    dataset: SegmentationDataset,
    segmentation: SegmentationConfig,
    workers: ModelWorkers,
    precision: Precision,
    out: Path,
    state: dict[str, Any],
    show: bool,
) -> dict[str, Any]:
    started = time.monotonic()
    calibration = None if config.calibration is None else BENCHMARKS["scenes"](config.calibration)
    if calibration is not None and calibration.classes != dataset.classes:
        raise ValueError(
            f"calibration={config.calibration} has other classes than root={config.root}: give matching folders"
        )
    methods = _methods(config, dataset, segmentation)
    chosen = _evenly_spaced(dataset, config.max_scenes)
    drawn = frozenset(_evenly_spaced(dataset, config.num_pictures, chosen))
    if calibration is not None and dataset.has_background:
        methods = _calibrated(workers, calibration, methods, config, precision, show)
    task = Task(
        dataset=dataset,
        methods=methods,
        details=True,
        drawn=drawn,
        batch_size=config.batch_size,
        precision=precision,
    )
    progress = ProgressLine(f"{dataset.benchmark}: scored", len(chosen), "images") if show else None
    scores = score_all(workers, task, chosen, progress)
    report = EvaluationReport(
        checkpoint=config.checkpoint,
        benchmark=dataset.benchmark,
        root=config.root,
        data_digest=dataset.digest,
        step=int(state.get("step") or 0),
        license=license_of(state),
        classes=dataset.classes,
        words=dataset.words,
        has_background=dataset.has_background,
        protocol=_protocol(config, dataset),
        rules_changed=config.background_threshold is not None or config.templates not in (None, "simple"),
        segmentation=methods[0].segmentation,
        precision=precision,
        thresholds={method.name: method.thresholds[0] for method in methods},
        parts=_part_results(dataset, methods, scores, chosen),
        num_scenes=len(chosen),
        official_counts=dataset.official_counts,
        seconds=time.monotonic() - started,
    )
    if show:
        print(table(report))
    write_report(report, scores, out, save_predictions=config.save_predictions)
    if config.mlflow_run is not None:
        # Files of several benchmarks have the same names.
        folder = f"evaluation/{dataset.benchmark}" if config.benchmark == "all" else "evaluation"
        log_to_mlflow(
            report.metrics() | image_counts(report.summary()),
            report.license,
            out,
            config.mlflow_run,
            config.tracking_uri,
            step=report.step,
            folder=folder,
        )
    return report.summary()


def _methods(
    config: EvaluateConfig, dataset: SegmentationDataset, segmentation: SegmentationConfig
) -> tuple[Method, ...]:
    threshold = (
        segmentation.background_threshold if config.background_threshold is None else config.background_threshold
    )
    if not dataset.has_background:
        segmentation = dataclasses.replace(segmentation, background_prompts=())
        threshold = None
    elif threshold is None:
        raise ValueError(f"{dataset.benchmark} has a background class, so background_threshold must be a number")
    segmentation = dataclasses.replace(segmentation, background_threshold=threshold)
    grouped = Method(name=GROUPS, segmentation=segmentation, thresholds=(threshold,))
    if not config.no_grouping:
        return (grouped,)
    without = dataclasses.replace(segmentation, grouping=False)
    return (grouped, Method(name=NO_GROUPING, segmentation=without, thresholds=(threshold,)))


def _calibrated(
    workers: ModelWorkers,
    calibration: SegmentationDataset,
    methods: tuple[Method, ...],
    config: EvaluateConfig,
    precision: Precision,
    show: bool,
) -> tuple[Method, ...]:
    """Returns the methods, each with the candidate threshold of the highest mean IoU over all calibration scenes."""
    tried = tuple(dataclasses.replace(method, thresholds=CANDIDATE_THRESHOLDS) for method in methods)
    task = Task(dataset=calibration, methods=tried, details=False, batch_size=config.batch_size, precision=precision)
    chosen = _evenly_spaced(calibration, config.max_scenes)
    progress = ProgressLine("background threshold: tried on", len(chosen), "images") if show else None
    scores = score_all(workers, task, chosen, progress)
    calibrated = []
    for method in methods:
        matrices = np.sum([matrix for (_, name), matrix in scores.confusion.items() if name == method.name], axis=0)
        best = CANDIDATE_THRESHOLDS[int(np.argmax([segmentation_metrics(matrix).mean_iou for matrix in matrices]))]
        segmentation = dataclasses.replace(method.segmentation, background_threshold=best)
        calibrated.append(Method(name=method.name, segmentation=segmentation, thresholds=(best,)))
    return tuple(calibrated)


def _part_results(
    dataset: SegmentationDataset, methods: Sequence[Method], scores: Scores, chosen: Sequence[int]
) -> dict[str, PartResult]:
    results: dict[str, PartResult] = {}
    for part in dataset.parts:
        scenes = [index for index in chosen if dataset.part_of_scene[index] == part]
        if not scenes:
            continue
        confusion = scores.confusion[part, GROUPS][0]
        baselines: dict[str, NDArray[np.int64]] = {
            method.name: scores.confusion[part, method.name][0] for method in methods[1:]
        }
        if dataset.has_background:
            everything = np.zeros_like(confusion)
            everything[:, 0] = confusion.sum(axis=1)
            baselines["all_background"] = everything
        results[part] = PartResult(
            num_scenes=len(scenes),
            confusion=confusion,
            baselines=baselines,
            oracle=scores.oracle.get(part),
            boundary=scores.boundary[part],
            usage=mean_usage(scores.usage, scenes),
        )
    return results


def _evenly_spaced(dataset: SegmentationDataset, per_part: int | None, among: Sequence[int] | None = None) -> list[int]:
    """Returns at most `per_part` scenes of each part, spread over the data set, in ascending order."""
    candidates = range(len(dataset.part_of_scene)) if among is None else among
    chosen: list[int] = []
    for part in dataset.parts:
        scenes = [index for index in candidates if dataset.part_of_scene[index] == part]
        count = len(scenes) if per_part is None else min(per_part, len(scenes))
        chosen += [scenes[position * len(scenes) // count] for position in range(count)]
    return sorted(chosen)
