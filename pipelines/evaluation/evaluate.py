"""Zero-shot segmentation of a benchmark, by several workers, with an exact result.

    groupvit evaluate --checkpoint runs/demo --root data/stamps/validation --calibration data/stamps/calibration
    groupvit evaluate --checkpoint C --benchmark voc21 --root DIR --protocol paper
    groupvit evaluate --checkpoint C --benchmark all --root DIR --protocol unified --num-workers 8

The result does not depend on the number of workers. On CPUs it does not depend on the batch size, either: the image
tower gives the same bits for a window, and only pixel counts are summed.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from groupvit.checkpoint import load, load_state
from groupvit.config import Precision, SegmentationConfig
from groupvit.interop.model_card import license_of
from pipelines.benchmarks.catalogue import BENCHMARKS
from pipelines.benchmarks.dataset import SegmentationDataset
from pipelines.benchmarks.given_words import changed_words, with_words
from pipelines.console.progress import ProgressLine
from pipelines.evaluation.classification import classify_images
from pipelines.evaluation.config import EvaluateConfig
from pipelines.evaluation.methods import (
    GROUPS,
    check_given_words,
    evenly_spaced,
    methods_for,
    protocol_for,
    segmentation_for,
)
from pipelines.evaluation.report import (
    EvaluationReport,
    PartResult,
    check_mlflow_run,
    check_out,
    comparison,
    image_counts,
    log_to_mlflow,
    table,
    write_report,
)
from pipelines.evaluation.retrieval import retrieve
from pipelines.evaluation.scoring import Method, Scorer, Scores, Task, mean_usage, score_all
from pipelines.evaluation.workers import ModelWorkers, model_workers, resolved_precision
from pipelines.runs.checkpoints import local_checkpoint
from pipelines.tracking.places import check_database

_OF_WHOLE_IMAGES = {"imagenet": classify_images, "retrieval": retrieve}


def evaluate(
    config: EvaluateConfig, segmentation: SegmentationConfig | None = None, *, show: bool = True
) -> dict[str, Any]:
    """Evaluates, writes the folder, and returns the content of its metrics.json. `show` prints progress and a table.

    For `all`, returns one such dict per benchmark, and the reasons why others were left out. `segmentation` replaces
    the protocol. Raises ValueError for invalid arguments or data.
    """
    check_out(config.out)
    if config.mlflow_run is not None:
        check_database(config.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI"), "tracking_uri")
        check_mlflow_run(config.mlflow_run, config.tracking_uri)
    if config.benchmark in _OF_WHOLE_IMAGES:
        return _of_whole_images(config)
    datasets, left_out = _open(config)
    with local_checkpoint(config.checkpoint) as folder:
        model, state = load(folder), load_state(folder)
    check_given_words(config, model)
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
        return [with_words(BENCHMARKS[config.benchmark](config.root), config.words)], {}
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
    methods = methods_for(config, dataset, segmentation, workers, precision, show)
    chosen = evenly_spaced(dataset, config.max_scenes)
    drawn = frozenset(evenly_spaced(dataset, config.num_pictures, chosen))
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
        protocol=protocol_for(config, dataset),
        changed_words=changed_words(dataset, config.words),
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
        metrics = report.metrics() | image_counts(report.summary())
        if config.words:  # beside the numbers of the benchmark's own words, not in their place
            folder, metrics = "evaluation/words", {f"words/{name}": value for name, value in metrics.items()}
        log_to_mlflow(
            metrics,
            report.license,
            out,
            config.mlflow_run,
            config.tracking_uri,
            step=report.step,
            folder=folder,
        )
    return report.summary()


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
