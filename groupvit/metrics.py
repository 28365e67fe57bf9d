"""Segmentation metrics of label maps, and statistics on how a model uses its groups. Needs only NumPy and SciPy.

All accuracy metrics come from one confusion matrix of pixel counts. The matrices of parts of a data set are added, so
the result does not depend on how the data set was divided among workers.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

IGNORE_INDEX = 255


def confusion_matrix(
    truth: NDArray[np.integer], prediction: NDArray[np.integer], num_classes: int, ignore_index: int = IGNORE_INDEX
) -> NDArray[np.int64]:
    """Count pixels by (true class, predicted class).

    Args:
        truth: Integer labels, any shape. Pixels labelled `ignore_index` are not counted.
        prediction: Integer labels, same shape.
        num_classes: Number of classes.
        ignore_index: Label of the pixels to ignore.

    Returns:
        int64 [num_classes, num_classes]; rows are the truth.

    Raises:
        ValueError: The shapes differ, or a label is out of range.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"truth is {truth.shape} and prediction {prediction.shape}: they must have equal shapes")
    counted = truth != ignore_index
    rows, columns = truth[counted].astype(np.int64), prediction[counted].astype(np.int64)
    for name, labels in (("truth", rows), ("prediction", columns)):
        if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
            raise ValueError(
                f"{name} holds {labels.min()} to {labels.max()}: 0 to {num_classes - 1} or {ignore_index} expected"
            )
    return np.bincount(rows * num_classes + columns, minlength=num_classes**2).reshape(num_classes, num_classes)


@dataclass(frozen=True, kw_only=True)
class SegmentationMetrics:
    """Fractions in [0, 1]. A class that is neither in the truth nor predicted is NaN and excluded from means."""

    class_iou: NDArray[np.float64]
    """[C]: intersection over union of all pixels of the data set."""
    class_accuracy: NDArray[np.float64]
    """[C]: fraction of the class's pixels that were found (recall); NaN for a class without any."""
    mean_iou: float
    pixel_accuracy: float


def segmentation_metrics(matrix: NDArray[np.int64]) -> SegmentationMetrics:
    """Compute metrics from a confusion matrix [C, C] (rows are the truth): IoU over the data set, then its mean.

    ValueError if the matrix counts no pixel.
    """
    if matrix.sum() == 0:
        raise ValueError("the confusion matrix is empty: no pixel has a label other than 'ignore'")
    hits = np.diag(matrix).astype(np.float64)
    true_pixels, predicted_pixels = matrix.sum(axis=1), matrix.sum(axis=0)
    with np.errstate(invalid="ignore"):
        class_iou = hits / (true_pixels + predicted_pixels - hits)
        class_accuracy = hits / true_pixels
    return SegmentationMetrics(
        class_iou=class_iou,
        class_accuracy=class_accuracy,
        mean_iou=float(np.nanmean(class_iou)),
        pixel_accuracy=float(hits.sum() / matrix.sum()),
    )


def best_classes(
    groups: NDArray[np.integer],
    truth: NDArray[np.integer],
    num_groups: int,
    num_classes: int,
    ignore_index: int = IGNORE_INDEX,
) -> NDArray[np.int64]:
    """Find the true class with the highest IoU for each group: two maps [H, W] → [num_groups].

    A group without counted pixels gets class 0.
    """
    counted = truth != ignore_index
    pairs = groups[counted].astype(np.int64) * num_classes + truth[counted].astype(np.int64)
    shared = np.bincount(pairs, minlength=num_groups * num_classes).reshape(num_groups, num_classes)
    union = shared.sum(axis=1, keepdims=True) + shared.sum(axis=0, keepdims=True) - shared
    return (shared / np.maximum(union, 1)).argmax(axis=1)


BOUNDARY_WIDTH = 0.02
"""Width of a boundary as a fraction of the image's diagonal (Cheng et al., CVPR 2021)."""


def boundary_counts(
    truth: NDArray[np.integer], prediction: NDArray[np.integer], num_classes: int, ignore_index: int = IGNORE_INDEX
) -> NDArray[np.int64]:
    """Count pixels for boundary IoU: int64 [num_classes, 2], intersection and union per class.

    Boundary IoU counts only those pixels of a mask that are within `BOUNDARY_WIDTH` of its edge or of the image's edge.
    Ignored pixels are not counted. The ratio of the sums over all images is a class's boundary IoU; its mean over
    classes is boundary mIoU (paper table 3), which is over a data set, like mIoU.
    """
    reach = max(round(BOUNDARY_WIDTH * math.hypot(*truth.shape)), 1)
    counted = truth != ignore_index
    of_truth, of_prediction = (
        np.where(_near_edge(labels, reach) & counted, labels, num_classes).astype(np.int64)
        for labels in (truth, prediction)
    )
    in_truth, in_prediction = (
        np.bincount(labels.ravel(), minlength=num_classes + 1)[:num_classes] for labels in (of_truth, of_prediction)
    )
    both = np.bincount(of_truth[of_truth == of_prediction], minlength=num_classes + 1)[:num_classes]
    return np.stack([both, in_truth + in_prediction - both], axis=1)


def mean_boundary_iou(counts: NDArray[np.int64]) -> float:
    """Compute boundary mIoU, a fraction, from summed `boundary_counts`. Classes without a boundary are excluded."""
    with np.errstate(invalid="ignore"):
        return float(np.nanmean(counts[:, 0] / counts[:, 1]))


def _near_edge(labels: NDArray[np.integer], reach: int) -> NDArray[np.bool_]:
    """Whether another label or the image's edge is within `reach` pixels of each pixel, in a square."""
    size, wide = 2 * reach + 1, labels.astype(np.int16)
    low = ndimage.minimum_filter(wide, size, mode="constant", cval=-1)
    high = ndimage.maximum_filter(wide, size, mode="constant", cval=-1)
    return low != high


@dataclass(frozen=True, kw_only=True)
class GroupUsage:
    """How one image uses the groups of a stage. Collapsed grouping has low entropy and many empty groups."""

    entropy: float
    """Entropy of the distribution of image tokens over groups, in nats: 0 for one group, ln(G) for equal shares."""
    empty_rate: float
    """Fraction of groups that no image token chose."""
    overlap: float
    """Mean cosine similarity of the soft maps of two groups: 0 if disjoint or if there is one group, 1 if identical."""

    @classmethod
    def mean(cls, usages: Sequence["GroupUsage"]) -> "GroupUsage":
        """Mean of each number, summed in the order given."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: float(np.mean([getattr(usage, name) for usage in usages])) for name in names})


def group_usage(group_map: NDArray[np.floating]) -> GroupUsage:
    """Compute the usage from a soft map [G, N]: for each of N image tokens, a distribution over G groups."""
    num_groups, num_tokens = group_map.shape
    shares = np.bincount(group_map.argmax(axis=0), minlength=num_groups) / num_tokens
    used = shares[shares > 0]
    unit = group_map / np.maximum(np.linalg.norm(group_map, axis=1, keepdims=True), 1e-12)
    num_pairs = num_groups * (num_groups - 1)
    similarity = unit @ unit.T
    return GroupUsage(
        entropy=float(-(used * np.log(used)).sum()),
        empty_rate=float((shares == 0).mean()),
        overlap=float((similarity.sum() - np.trace(similarity)) / num_pairs) if num_pairs else 0.0,
    )
