"""How a benchmark is segmented: the settings of its protocol, the compared methods, and which scenes are scored."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from groupvit.captions import SEGMENTATION_TEMPLATE_SETS
from groupvit.config import Precision, Protocol, SegmentationConfig
from groupvit.metrics import segmentation_metrics
from groupvit.model import GroupViT
from groupvit.protocols import protocol_of
from groupvit.tokenizer import Tokenizer
from groupvit.words import check_lengths, parse_words
from pipelines.benchmarks.catalogue import BENCHMARKS
from pipelines.benchmarks.dataset import SegmentationDataset
from pipelines.benchmarks.published import PAPER_THRESHOLDS
from pipelines.console.progress import ProgressLine
from pipelines.evaluation.config import EvaluateConfig
from pipelines.evaluation.scoring import Method, Task, score_all
from pipelines.evaluation.workers import ModelWorkers

CANDIDATE_THRESHOLDS = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5),
    *(0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999),
)
"""Background thresholds to try on calibration scenes. Dense near 0 and 1: scores of many and few classes lie there."""

GROUPS, NO_GROUPING = "groups", "no_grouping"


def protocol_for(config: EvaluateConfig, dataset: SegmentationDataset) -> Protocol:
    """Returns the protocol of the config, or the default of the benchmark."""
    return config.protocol or ("model" if dataset.benchmark in ("scenes", "folder") else "paper")


def segmentation_for(
    config: EvaluateConfig, dataset: SegmentationDataset, model: GroupViT, state: dict[str, Any]
) -> SegmentationConfig:
    """Returns the settings for segmenting this benchmark under the config's protocol."""
    protocol = protocol_for(config, dataset)
    segmentation = protocol_of(protocol, model, state, with_pamr=config.pamr)
    if protocol == "paper":
        threshold = PAPER_THRESHOLDS.get(dataset.benchmark, segmentation.background_threshold)
        segmentation = dataclasses.replace(segmentation, background_threshold=threshold)
    if config.templates is not None:
        segmentation = dataclasses.replace(segmentation, templates=SEGMENTATION_TEMPLATE_SETS[config.templates])
    return segmentation


def methods_for(
    config: EvaluateConfig,
    dataset: SegmentationDataset,
    segmentation: SegmentationConfig,
    workers: ModelWorkers,
    precision: Precision,
    show: bool,
) -> tuple[Method, ...]:
    """Returns the compared methods, the one with groups first, with their background thresholds.

    Thresholds are chosen on the calibration scenes if there are any. Raises ValueError if these do not match.
    """
    calibration = None if config.calibration is None else BENCHMARKS["scenes"](config.calibration)
    if calibration is not None and calibration.classes != dataset.classes:
        raise ValueError(
            f"calibration={config.calibration} has other classes than root={config.root}: give matching folders"
        )
    methods = _methods(config, dataset, segmentation)
    if calibration is not None and dataset.has_background:
        methods = _calibrated(workers, calibration, methods, config, precision, show)
    return methods


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
    chosen = evenly_spaced(calibration, config.max_scenes)
    progress = ProgressLine("background threshold: tried on", len(chosen), "images") if show else None
    scores = score_all(workers, task, chosen, progress)
    calibrated = []
    for method in methods:
        matrices = np.sum([matrix for (_, name), matrix in scores.confusion.items() if name == method.name], axis=0)
        best = CANDIDATE_THRESHOLDS[int(np.argmax([segmentation_metrics(matrix).mean_iou for matrix in matrices]))]
        segmentation = dataclasses.replace(method.segmentation, background_threshold=best)
        calibrated.append(Method(name=method.name, segmentation=segmentation, thresholds=(best,)))
    return tuple(calibrated)


def evenly_spaced(dataset: SegmentationDataset, per_part: int | None, among: Sequence[int] | None = None) -> list[int]:
    """Returns at most `per_part` scenes of each part, spread over the data set, in ascending order."""
    candidates = range(len(dataset.part_of_scene)) if among is None else among
    chosen: list[int] = []
    for part in dataset.parts:
        scenes = [index for index in candidates if dataset.part_of_scene[index] == part]
        count = len(scenes) if per_part is None else min(per_part, len(scenes))
        chosen += [scenes[position * len(scenes) // count] for position in range(count)]
    return sorted(chosen)


def check_given_words(config: EvaluateConfig, model: GroupViT) -> None:
    """Raises ValueError if a word of `words` has no token, or more than the text encoder reads."""
    if words := [word for text in config.words for word in parse_words(text.partition("=")[2])]:
        templates = SEGMENTATION_TEMPLATE_SETS[config.templates or "simple"]
        check_lengths(words, templates, Tokenizer(), model.config.text.context_length)


def described(
    protocol: Protocol, rules: SegmentationConfig, precision: str, changed_words: Mapping[str, Sequence[str]]
) -> str:
    """Describes the settings in one line: two numbers are comparable only if this line is the same."""
    size = "size as it is" if rules.short_side is None else f"short side {rules.short_side}"
    windows = "whole image" if rules.window is None else f"windows of {rules.window}, stride {rules.stride}"
    parts = [f"protocol {protocol}", size, windows]
    parts += [f"scales {rules.scales}"] if rules.scales != (1.0,) else []
    parts += ["mirrored too"] if rules.flip else []
    parts.append("all classes" if rules.top_classes is None else f"top {rules.top_classes} classes of a window")
    if rules.background_threshold is not None:
        kind = "below" if rules.background_rule == "below_threshold" else "as a class of score"
        parts.append(f"background {kind} {rules.background_threshold}")
    parts += [f"PAMR x {rules.pamr_iterations}"] if rules.pamr_iterations is not None else []
    parts.append(precision)
    count = len(rules.templates)
    parts.append(f'"{rules.templates[0]}"' if count == 1 else f"{count} prompt templates")
    parts += [f"{name} by the words {'/'.join(words)}" for name, words in changed_words.items()]
    return ", ".join(parts)
