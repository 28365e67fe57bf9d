"""Several ways to evaluate the same scenes: the protocol, and variants of it that do one thing in another way.

A variant is the settings of the protocol, and functions in place of those that it uses. All variants go through the
same code as the protocol. Variants that see the same windows share a pass of the image tower.

Shapes: V variants, N scenes, C classes, R resamples.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from groupvit.config import Precision, SegmentationConfig
from groupvit.metrics import confusion_matrix
from groupvit.segmentation import Words
from groupvit.windows import Encode, Prepare, encode_image, encode_views, resized_image
from pipelines.benchmarks.dataset import SegmentationDataset
from pipelines.evaluation.scoring import Scorer, labelled

Count = Callable[[NDArray[np.uint8], NDArray[np.uint8], int], NDArray[np.int64]]
"""(ground truth [H, W], labels [H, W], C) → hits, pixels of the truth and predicted pixels of each class, [3, C]."""
Average = Callable[[NDArray[np.int64], NDArray[np.float64]], NDArray[np.float64]]
"""(counts of scenes [N, 3, C], how often each scene counts [R, N]) → mIoU as a fraction [R]."""


def count_pixels(truth: NDArray[np.uint8], labels: NDArray[np.uint8], num_classes: int) -> NDArray[np.int64]:
    """Counts the pixels that are not ignored."""
    matrix = confusion_matrix(truth, labels, num_classes)
    return np.stack([np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)])


def class_iou(counts: NDArray[Any]) -> NDArray[np.float64]:
    """Returns the IoU of each class, [..., 3, C] → [..., C]. NaN for a class that is neither there nor predicted."""
    hits, true_pixels, predicted_pixels = np.moveaxis(counts.astype(np.float64), -2, 0)
    union = true_pixels + predicted_pixels - hits
    return np.divide(hits, union, out=np.full_like(hits, np.nan), where=union > 0)


def mean_without_nan(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the mean over the last axis without NaNs. NaN if all are."""
    known = ~np.isnan(values)
    total = np.where(known, values, 0.0).sum(axis=-1)
    return np.divide(total, known.sum(axis=-1), out=np.full_like(total, np.nan), where=known.any(axis=-1))


def mean_over_classes(counts: NDArray[np.int64], times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Averages over classes the IoU over all scenes. The counts stay exact."""
    return mean_without_nan(class_iou(np.tensordot(times, counts, axes=1)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """A way to evaluate. The defaults are those of every protocol."""

    segmentation: SegmentationConfig
    """Settings. Its background threshold is None if the data has no background."""
    words: tuple[tuple[str, ...], ...]
    """Words of each class except the background."""
    prepare: Prepare = resized_image
    encode: Encode = encode_image
    change_words: Callable[[Words], Words] | None = None
    """Changes the embeddings of the words, or the scale of their scores."""
    labels_at_model_size: bool = False
    """Whether the ground truth is resized to what the model sees, in place of the prediction to the ground truth."""
    count: Count = count_pixels
    average: Average = mean_over_classes

    @property
    def encoding(self) -> tuple[Any, ...]:
        """Equal for variants that see the same windows."""
        defaults = SegmentationConfig()
        after = {name: getattr(defaults, name) for name in AFTER_ENCODING}
        return self.prepare, self.encode, dataclasses.replace(self.segmentation, **after)

    @property
    def labelling(self) -> "Variant":
        """Equal for variants that give the same labels."""
        return dataclasses.replace(self, count=count_pixels, average=mean_over_classes)


AFTER_ENCODING = (
    *("templates", "background_threshold", "background_rule", "background_prompts"),
    *("top_classes", "logit_scale", "masks", "pamr_iterations"),
)
"""Settings that are used after the image tower only."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VariantTask:
    """What to count."""

    dataset: SegmentationDataset
    variants: tuple[Variant, ...]
    batch_size: int | None
    """Number of windows in one batch of the image tower on a GPU. None: 32."""
    precision: Precision


def count_variants(scorer: Scorer, task: VariantTask, block: Any) -> dict[int, NDArray[np.int64]]:
    """Reads a block and counts its pixels: [V, 3, C] by scene. Raises ValueError for a scene that cannot be read."""
    scenes = list(task.dataset.read(block))
    num_classes = len(task.dataset.classes)
    counts = {scene.index: np.zeros((len(task.variants), 3, num_classes), dtype=np.int64) for scene in scenes}
    encodings: dict[tuple[Any, ...], list[int]] = {}
    for number, variant in enumerate(task.variants):
        encodings.setdefault(variant.encoding, []).append(number)
    for numbers in encodings.values():
        first = task.variants[numbers[0]]
        encoded = encode_views(
            scorer.model,
            [scene.image for scene in scenes],
            first.segmentation,
            batch_size=task.batch_size,
            precision=task.precision,
            prepare=first.prepare,
            encode=first.encode,
        )
        for scene, views in zip(scenes, encoded, strict=True):
            known: dict[Variant, NDArray[np.uint8]] = {}
            for number in numbers:
                variant = task.variants[number]
                truth = _resized(scene.mask, views[0].size) if variant.labels_at_model_size else scene.mask
                if variant.labelling not in known:
                    words = scorer.embedded(variant.words, variant.segmentation)
                    words = words if variant.change_words is None else variant.change_words(words)
                    size, threshold = (truth.shape[0], truth.shape[1]), variant.segmentation.background_threshold
                    [known[variant.labelling]] = labelled(scene, views, words, size, variant.segmentation, (threshold,))
                counts[scene.index][number] = variant.count(truth, known[variant.labelling], num_classes)
    return counts


def _resized(truth: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(truth).resize((size[1], size[0]), Image.Resampling.NEAREST))
