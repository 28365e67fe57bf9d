"""Scores scenes: what one worker of an evaluation does, and the sum over all of them.

Sums are of whole pixels, so they can be added in any order.
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
from groupvit.metrics import GroupUsage, boundary_counts, confusion_matrix, segmentation_metrics
from groupvit.model import GroupViT
from groupvit.segmentation import Words, label, oracle, predict_groups, usage
from groupvit.tokenizer import Tokenizer
from groupvit.visualize import Example, encode_labels, label_palette
from groupvit.windows import View, encode_views
from groupvit.zero_shot import class_embeddings
from pipelines.benchmarks.dataset import Scene, SegmentationDataset
from pipelines.console.progress import ProgressLine
from pipelines.evaluation.workers import ModelWorkers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """A way to segment, tried at one or more background thresholds."""

    name: str
    segmentation: SegmentationConfig
    thresholds: tuple[float | None, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneResult:
    """How well one scene was segmented: for comparing models scene by scene."""

    sample_id: str
    part: str
    mean_iou: float
    """Over the classes that are in its truth or predicted; NaN where all of it is ignored."""
    pixel_accuracy: float


@dataclasses.dataclass(kw_only=True)
class Scores:
    """Sums over scenes, by (part, method)."""

    num_scenes: int = 0
    confusion: dict[tuple[str, str], NDArray[np.int64]] = dataclasses.field(default_factory=dict)
    """[num_thresholds, C, C] for every method."""
    oracle: dict[str, NDArray[np.int64]] = dataclasses.field(default_factory=dict)
    """[C, C] by part, of the best labels the last stage's groups allow."""
    boundary: dict[str, NDArray[np.int64]] = dataclasses.field(default_factory=dict)
    """[C, 2] by part, of the first method: intersections and unions near the edges of masks."""
    scenes: dict[int, "SceneResult"] = dataclasses.field(default_factory=dict)
    """By scene, of the first method."""
    usage: dict[int, list[GroupUsage]] = dataclasses.field(default_factory=dict)
    """By scene: one entry per grouping stage. Not summed on the way, since sums of fractions depend on their order."""
    predictions: dict[int, bytes] = dataclasses.field(default_factory=dict)
    """By scene: PNG of class indexes, of the first method at its first threshold."""
    examples: dict[tuple[str, int], Example] = dataclasses.field(default_factory=dict)
    """Pictures to draw, by part and scene."""

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
    """What is to be found out about a data set."""

    dataset: SegmentationDataset
    methods: tuple[Method, ...]
    details: bool
    """Whether the oracle, boundaries, the use of groups, and predictions are wanted too, of the first method."""
    drawn: frozenset[int] = frozenset()
    """Scenes kept as examples."""
    batch_size: int | None = None
    """Windows that go through the image tower together on a GPU; None: 32."""
    precision: Precision = "float32"
    """What the image tower computes in."""


SCENES_PER_BLOCK = 16


def score_all(workers: ModelWorkers, task: Task, chosen: Sequence[int], progress: ProgressLine | None = None) -> Scores:
    """Sums over the chosen scenes, by workers made of `Scorer`. ValueError for a scene that cannot be read."""
    total = Scores()
    with progress or contextlib.nullcontext():
        for _, scores in workers.each(Scorer.score, task, task.dataset.blocks(chosen, SCENES_PER_BLOCK)):
            total.add(scores)
            if progress is not None:
                progress.add(scores.num_scenes)
    return total


class Scorer:
    """Holds a model; scores blocks of scenes."""

    def __init__(self, model: GroupViT, *, num_threads: int, device: str = "cpu") -> None:
        torch.set_num_threads(num_threads)
        self.device = torch.device(device)
        self._model = model.to(device).eval()
        self._tokenizer = Tokenizer()
        self._embedded: dict[tuple[tuple[str | tuple[str, ...], ...], tuple[str, ...]], Tensor] = {}

    def score(self, task: Task, block: Any) -> Scores:
        """Reads and scores a block. ValueError for a scene that cannot be read."""
        scenes = list(task.dataset.read(block))
        total = Scores(num_scenes=len(scenes))
        for method in task.methods:
            images = [scene.image for scene in scenes]
            encoded = encode_views(
                self._model, images, method.segmentation, batch_size=task.batch_size, precision=task.precision
            )
            words = self._words(task, method.segmentation)
            for scene, views in zip(scenes, encoded, strict=True):
                size = (scene.mask.shape[0], scene.mask.shape[1])
                try:
                    maps = label(views, words, size, method.segmentation, method.thresholds)
                except ValueError as error:
                    raise ValueError(f"image {scene.sample_id}: {error}") from None
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
                group_maps=predict_groups(self._model, scene.image, method.segmentation),
            )

    def _words(self, task: Task, segmentation: SegmentationConfig) -> Words:
        templates, prompts = segmentation.templates, segmentation.background_prompts
        background = self._embeddings(prompts, templates) if prompts else None
        return Words.of(self._model, self._embeddings(task.dataset.words, templates), background, segmentation)

    def _embeddings(self, words: tuple[str | tuple[str, ...], ...], templates: tuple[str, ...]) -> Tensor:
        """Class embeddings, made once."""
        if (words, templates) not in self._embedded:
            self._embedded[words, templates] = class_embeddings(self._model, self._tokenizer, words, templates)
        return self._embedded[words, templates]


def mean_usage(usage: Mapping[int, Sequence[GroupUsage]], scenes: Sequence[int]) -> list[GroupUsage]:
    """The means over scenes, in the order given: one per grouping stage."""
    return [GroupUsage.mean(stage) for stage in zip(*(usage[scene] for scene in scenes), strict=True)]


def _scene_result(scene: Scene, matrix: NDArray[np.int64]) -> SceneResult:
    metrics = segmentation_metrics(matrix) if matrix.any() else None
    return SceneResult(
        sample_id=scene.sample_id,
        part=scene.part,
        mean_iou=float("nan") if metrics is None else metrics.mean_iou,
        pixel_accuracy=float("nan") if metrics is None else metrics.pixel_accuracy,
    )
