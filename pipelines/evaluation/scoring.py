"""Scores scenes in the workers of an evaluation, and sums the scores over all workers.

The sums count whole pixels, so they can be added in any order.
"""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from groupvit.config import Precision, SegmentationConfig
from groupvit.group_quality import oracle, usage
from groupvit.metrics import GroupUsage, boundary_counts, confusion_matrix, segmentation_metrics
from groupvit.model import GroupViT
from groupvit.segmentation import Words, label, predict_groups
from groupvit.tokenizer import Tokenizer
from groupvit.visualize import Example, encode_labels, label_palette
from groupvit.windows import View, encode_views
from groupvit.zero_shot import class_embeddings
from pipelines.benchmarks.dataset import Scene, SegmentationDataset
from pipelines.console.progress import ProgressLine
from pipelines.evaluation.workers import ModelWorkers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """A way to segment, scored at one or more background thresholds."""

    name: str
    segmentation: SegmentationConfig
    thresholds: tuple[float | None, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneResult:
    """Scores of one scene, to compare models scene by scene."""

    sample_id: str
    part: str
    mean_iou: float
    """Mean over the classes that are in the ground truth or predicted; NaN if all pixels are ignored."""
    pixel_accuracy: float


@dataclasses.dataclass(kw_only=True)
class Scores:
    """Sums over scenes."""

    num_scenes: int = 0
    confusion: dict[tuple[str, str], NDArray[np.int64]] = dataclasses.field(default_factory=dict)
    """Confusion matrices [num_thresholds, C, C] by part and method."""
    oracle: dict[str, NDArray[np.int64]] = dataclasses.field(default_factory=dict)
    """Confusion matrices [C, C] by part, of the best labels that the groups of the last stage allow."""
    boundary: dict[str, NDArray[np.int64]] = dataclasses.field(default_factory=dict)
    """Intersections and unions near the edges of masks [C, 2] by part, of the first method."""
    scenes: dict[int, "SceneResult"] = dataclasses.field(default_factory=dict)
    """Results of the first method, by scene."""
    usage: dict[int, list[GroupUsage]] = dataclasses.field(default_factory=dict)
    """Use of groups by scene, one entry per grouping stage. Not summed: sums of fractions depend on their order."""
    predictions: dict[int, bytes] = dataclasses.field(default_factory=dict)
    """PNGs of class indexes by scene, of the first method at its first threshold."""
    examples: dict[tuple[str, int], Example] = dataclasses.field(default_factory=dict)
    """Examples to draw, by part and scene."""

    def add(self, other: "Scores") -> None:
        self.num_scenes += other.num_scenes
        for key, matrix in other.confusion.items():
            self.confusion[key] = self.confusion.get(key, 0) + matrix
        for part, matrix in other.oracle.items():
            self.oracle[part] = self.oracle.get(part, 0) + matrix
        for part, counts in other.boundary.items():
            self.boundary[part] = self.boundary.get(part, 0) + counts
        self.scenes |= other.scenes
        self.usage |= other.usage
        self.predictions |= other.predictions
        self.examples |= other.examples


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """How to score a data set."""

    dataset: SegmentationDataset
    methods: tuple[Method, ...]
    details: bool
    """Whether to add the oracle, boundaries, use of groups, and predictions of the first method."""
    drawn: frozenset[int] = frozenset()
    """Scenes to keep as examples."""
    batch_size: int | None = None
    """Number of windows in one batch of the image tower on a GPU. None: 32."""
    precision: Precision = "float32"
    """Precision of the image tower."""


SCENES_PER_BLOCK = 16


def score_all(workers: ModelWorkers, task: Task, chosen: Sequence[int], progress: ProgressLine | None = None) -> Scores:
    """Returns the sums over the chosen scenes. `workers` run `Scorer`. Raises ValueError for an unreadable scene."""
    total = Scores()
    with progress or contextlib.nullcontext():
        for _, scores in workers.each(Scorer.score, task, task.dataset.blocks(chosen, SCENES_PER_BLOCK)):
            total.add(scores)
            if progress is not None:
                progress.add(scores.num_scenes)
    return total


class Scorer:
    """Holds a model and scores blocks of scenes."""

    def __init__(self, model: GroupViT, *, num_threads: int, device: str = "cpu") -> None:
        torch.set_num_threads(num_threads)
        self.device = torch.device(device)
        self.model = model.to(device).eval()
        self._tokenizer = Tokenizer()
        self._embedded: dict[tuple[tuple[str | tuple[str, ...], ...], tuple[str, ...]], Tensor] = {}

    def score(self, task: Task, block: Any) -> Scores:
        """Reads and scores a block. Raises ValueError for a scene that cannot be read."""
        scenes = list(task.dataset.read(block))
        total = Scores(num_scenes=len(scenes))
        for method in task.methods:
            images = [scene.image for scene in scenes]
            encoded = encode_views(
                self.model, images, method.segmentation, batch_size=task.batch_size, precision=task.precision
            )
            words = self.embedded(task.dataset.words, method.segmentation)
            for scene, views in zip(scenes, encoded, strict=True):
                size = (scene.mask.shape[0], scene.mask.shape[1])
                maps = labelled(scene, views, words, size, method.segmentation, method.thresholds)
                matrices = [confusion_matrix(scene.mask, labels, len(task.dataset.classes)) for labels in maps]
                of_scene = Scores(confusion={(scene.part, method.name): np.stack(matrices)})
                if task.details and method is task.methods[0]:
                    self._add_details(task, scene, views[0], maps[0], of_scene)
                total.add(of_scene)
        return total

    def _add_details(self, task: Task, scene: Scene, view: View, labels: NDArray[np.uint8], scores: Scores) -> None:
        num_classes, method = len(task.dataset.classes), task.methods[0]
        scores.boundary[scene.part] = boundary_counts(scene.mask, labels, num_classes)
        scores.usage[scene.index] = usage(view)
        if view.windows[0].group_maps:
            best = oracle(view, scene.mask, num_classes)
            scores.oracle[scene.part] = confusion_matrix(scene.mask, best, num_classes)
        scores.scenes[scene.index] = _scene_result(scene, scores.confusion[scene.part, method.name][0])
        colours = label_palette(num_classes, task.dataset.has_background, task.dataset.colours)
        scores.predictions[scene.index] = encode_labels(labels, colours)
        if scene.index in task.drawn:
            scores.examples[scene.part, scene.index] = Example(
                title=f"{scene.index}: {scene.caption}",
                image=scene.image,
                truth=scene.mask,
                prediction=labels,
                group_maps=predict_groups(self.model, scene.image, method.segmentation),
            )

    def embedded(self, words: tuple[tuple[str, ...], ...], segmentation: SegmentationConfig) -> Words:
        """Returns the embeddings of classes with these words, and of the background prompts."""
        templates, prompts = segmentation.templates, segmentation.background_prompts
        background = self._embeddings(prompts, templates) if prompts else None
        return Words.of(self.model, self._embeddings(words, templates), background, segmentation)

    def _embeddings(self, words: tuple[str | tuple[str, ...], ...], templates: tuple[str, ...]) -> Tensor:
        """Returns class embeddings, which are computed once."""
        if (words, templates) not in self._embedded:
            self._embedded[words, templates] = class_embeddings(self.model, self._tokenizer, words, templates)
        return self._embedded[words, templates]


def labelled(
    scene: Scene,
    views: Sequence[View],
    words: Words,
    size: tuple[int, int],
    segmentation: SegmentationConfig,
    thresholds: Sequence[float | None],
) -> list[NDArray[np.uint8]]:
    """Returns a label map of this size per threshold, as `groupvit.segmentation.label`. Its ValueError names the
    image."""
    try:
        return label(views, words, size, segmentation, thresholds)
    except ValueError as error:
        raise ValueError(f"image {scene.sample_id}: {error}") from None


def mean_usage(usage: Mapping[int, Sequence[GroupUsage]], scenes: Sequence[int]) -> list[GroupUsage]:
    """Returns the mean over the scenes, in the given order, for each grouping stage."""
    return [GroupUsage.mean(stage) for stage in zip(*(usage[scene] for scene in scenes), strict=True)]


def _scene_result(scene: Scene, matrix: NDArray[np.int64]) -> SceneResult:
    metrics = segmentation_metrics(matrix) if matrix.any() else None
    return SceneResult(
        sample_id=scene.sample_id,
        part=scene.part,
        mean_iou=float("nan") if metrics is None else metrics.mean_iou,
        pixel_accuracy=float("nan") if metrics is None else metrics.pixel_accuracy,
    )
