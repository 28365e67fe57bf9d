"""Scores scenes: what one worker of an evaluation does, without Ray.

Sums are of whole pixels, so they can be added in any order.
"""

import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from groupvit.metrics import GroupUsage, confusion_matrix, group_usage, oracle_labels
from groupvit.model import GroupViT
from groupvit.segmentation import SegmentationConfig, predict, predict_groups
from groupvit.tokenizer import Tokenizer
from groupvit.visualize import Example, label_palette
from groupvit.zero_shot import class_embeddings
from pipelines.benchmarks.dataset import Scene, SegmentationDataset


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """A way to segment, tried at one or more background thresholds."""

    name: str
    segmentation: SegmentationConfig
    thresholds: tuple[float | None, ...]


@dataclasses.dataclass(kw_only=True)
class Scores:
    """Sums over scenes, by (part, method)."""

    confusion: dict[tuple[str, str], NDArray[np.int64]] = dataclasses.field(default_factory=dict)
    """[num_thresholds, C, C] for every method."""
    oracle: dict[str, NDArray[np.int64]] = dataclasses.field(default_factory=dict)
    """[C, C] by part, of the best labels the last stage's groups allow."""
    usage: dict[int, list[GroupUsage]] = dataclasses.field(default_factory=dict)
    """By scene: one entry per grouping stage. Not summed on the way, since sums of fractions depend on their order."""
    predictions: dict[int, bytes] = dataclasses.field(default_factory=dict)
    """By scene: PNG of class indexes, of the first method at its first threshold."""
    examples: dict[tuple[str, int], Example] = dataclasses.field(default_factory=dict)
    """Pictures to draw, by part and scene."""

    def add(self, other: "Scores") -> None:
        for key, matrix in other.confusion.items():
            self.confusion[key] = self.confusion.get(key, 0) + matrix
        for part, matrix in other.oracle.items():
            self.oracle[part] = self.oracle.get(part, 0) + matrix
        self.usage |= other.usage
        self.predictions |= other.predictions
        self.examples |= other.examples


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What is to be found out about a data set."""

    dataset: SegmentationDataset
    methods: tuple[Method, ...]
    details: bool
    """Whether the oracle, the use of groups, and predictions are wanted too, of the first method."""
    drawn: frozenset[int] = frozenset()
    """Scenes kept as examples."""


class Scorer:
    """Holds a model; scores blocks of scenes one image at a time."""

    def __init__(self, model: GroupViT, *, num_threads: int, device: str = "cpu") -> None:
        torch.set_num_threads(num_threads)
        self._model = model.to(device).eval()
        self._tokenizer = Tokenizer()
        self._embedded: dict[tuple[tuple[str | tuple[str, ...], ...], tuple[str, ...]], Tensor] = {}

    def score(self, task: Task, block: Any) -> Scores:
        """Reads and scores a block. ValueError for a scene that cannot be read."""
        total = Scores()
        for scene in task.dataset.read(block):
            total.add(self._score_scene(task, scene))
        return total

    def _score_scene(self, task: Task, scene: Scene) -> Scores:
        num_classes = len(task.dataset.classes)
        words = task.dataset.words
        scores = Scores()
        labels: list[NDArray[np.uint8]] = []
        for method in task.methods:
            maps = predict(
                self._model,
                scene.image,
                self._embeddings(words, method.segmentation.templates),
                method.segmentation,
                background_embeddings=self._background_embeddings(method.segmentation),
                thresholds=method.thresholds,
            )
            labels = labels or maps
            matrices = [confusion_matrix(scene.mask, labels_at, num_classes) for labels_at in maps]
            scores.confusion[scene.part, method.name] = np.stack(matrices)
        if not task.details:
            return scores
        group_maps = predict_groups(self._model, scene.image, task.methods[0].segmentation)
        scores.usage[scene.index] = [group_usage(stage.reshape(len(stage), -1)) for stage in group_maps]
        if group_maps:
            best = oracle_labels(_pixel_groups(group_maps[-1], scene.mask.shape), scene.mask, num_classes)
            scores.oracle[scene.part] = confusion_matrix(scene.mask, best, num_classes)
        colours = label_palette(num_classes, task.dataset.has_background)
        scores.predictions[scene.index] = encode_labels(labels[0], colours)
        if scene.index in task.drawn:
            scores.examples[scene.part, scene.index] = Example(
                title=f"{scene.index}: {scene.caption}",
                image=scene.image,
                truth=scene.mask,
                prediction=labels[0],
                group_maps=group_maps,
            )
        return scores

    def _embeddings(self, words: tuple[str | tuple[str, ...], ...], templates: tuple[str, ...]) -> Tensor:
        """Class embeddings, made once."""
        if (words, templates) not in self._embedded:
            self._embedded[words, templates] = class_embeddings(self._model, self._tokenizer, words, templates)
        return self._embedded[words, templates]

    def _background_embeddings(self, segmentation: SegmentationConfig) -> Tensor | None:
        prompts = segmentation.background_prompts
        return self._embeddings(prompts, segmentation.templates) if prompts else None


def mean_usage(usage: Mapping[int, Sequence[GroupUsage]], scenes: Sequence[int]) -> list[dict[str, float]]:
    """Means over scenes, taken in the order given, of every number of `GroupUsage`: one dict per grouping stage."""
    stages = zip(*(usage[scene] for scene in scenes), strict=True)
    names = [field.name for field in dataclasses.fields(GroupUsage)]
    return [{name: float(np.mean([getattr(item, name) for item in stage])) for name in names} for stage in stages]


def encode_labels(labels: NDArray[np.uint8], colours: NDArray[np.uint8]) -> bytes:
    """A label map as a PNG of indexes [H, W] with a palette [256, 3], so that it can be read back and looked at."""
    picture, file = Image.fromarray(labels).convert("P"), io.BytesIO()
    picture.putpalette(colours.tobytes())
    picture.save(file, format="PNG")
    return file.getvalue()


def _pixel_groups(group_map: NDArray[np.float32], size: tuple[int, ...]) -> NDArray[np.int64]:
    """The group of each pixel: [G, h, w], enlarged bilinearly → [H, W]."""
    shape = (size[1], size[0])
    enlarged = [np.asarray(Image.fromarray(group).resize(shape, Image.Resampling.BILINEAR)) for group in group_map]
    return np.argmax(enlarged, axis=0)
