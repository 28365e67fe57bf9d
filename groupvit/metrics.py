"""Segmentation metrics on label maps, and how evenly a model uses its groups. NumPy and SciPy only.

Everything about accuracy comes from one confusion matrix of whole pixels. Matrices of parts of a data set add up, so
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
    """Counts pixels by (true class, predicted class).

    truth, prediction: integers of equal shape; pixels whose truth is `ignore_index` do not count. Returns int64
    [num_classes, num_classes], rows are the truth. Raises ValueError when shapes differ or a label is out of range.
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
    """Fractions in [0, 1]. A class that is neither in the truth nor predicted is NaN and left out of the means."""

    class_iou: NDArray[np.float64]
    """[C]: intersection over union, over all pixels of the data set."""
    class_accuracy: NDArray[np.float64]
    """[C]: fraction of the class's pixels found (recall); NaN where the truth has none."""
    mean_iou: float
    pixel_accuracy: float


def segmentation_metrics(matrix: NDArray[np.int64]) -> SegmentationMetrics:
    """Metrics of a confusion matrix [C, C] (rows are the truth): data-set-level IoU, then the mean.

    Raises ValueError when the matrix holds no pixel.
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
    """The true class with which the pixels of each group have the highest IoU: [H, W] twice → [num_groups].

    A group without counted pixels gets class 0.
    """
    counted = truth != ignore_index
    pairs = groups[counted].astype(np.int64) * num_classes + truth[counted].astype(np.int64)
    shared = np.bincount(pairs, minlength=num_groups * num_classes).reshape(num_groups, num_classes)
    union = shared.sum(axis=1, keepdims=True) + shared.sum(axis=0, keepdims=True) - shared
    return (shared / np.maximum(union, 1)).argmax(axis=1)


BOUNDARY_WIDTH = 0.02
"""Share of the image's diagonal within which a pixel counts as boundary (Cheng et al., CVPR 2021)."""


def boundary_counts(
    truth: NDArray[np.integer], prediction: NDArray[np.integer], num_classes: int, ignore_index: int = IGNORE_INDEX
) -> NDArray[np.int64]:
    """Pixels that count for boundary IoU: int64 [num_classes, 2], intersection and union per class.

    As IoU, but of each mask only the pixels within `BOUNDARY_WIDTH` of its edge count (of the image's edge, too). Where
    the truth is ignored nothing counts. Summed over images, their ratio is a class's boundary IoU, and the mean over
    classes boundary mIoU (paper table 3; of a data set, as its mIoU).
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
    """Boundary mIoU of summed `boundary_counts`, a fraction; classes without any boundary are left out."""
    with np.errstate(invalid="ignore"):
        return float(np.nanmean(counts[:, 0] / counts[:, 1]))


def _near_edge(labels: NDArray[np.integer], reach: int) -> NDArray[np.bool_]:
    """Pixels that a square of this reach around them shows another label or the image's edge."""
    size, wide = 2 * reach + 1, labels.astype(np.int16)
    low = ndimage.minimum_filter(wide, size, mode="constant", cval=-1)
    high = ndimage.maximum_filter(wide, size, mode="constant", cval=-1)
    return low != high


@dataclass(frozen=True, kw_only=True)
class GroupUsage:
    """How one image uses the groups of a stage; collapsed grouping shows as low entropy and many empty groups."""

    entropy: float
    """Of the distribution of image tokens over groups, in nats: 0 if one has all, ln(G) if all have equal shares."""
    empty_rate: float
    """Fraction of groups that no image token chose."""
    overlap: float
    """Mean cosine similarity of two groups' soft maps: 0 if disjoint, 1 if all are the same. 0 for a single group."""

    @classmethod
    def mean(cls, usages: Sequence["GroupUsage"]) -> "GroupUsage":
        """The mean of each number, summed in the order given."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: float(np.mean([getattr(usage, name) for usage in usages])) for name in names})


def group_usage(group_map: NDArray[np.floating]) -> GroupUsage:
    """Usage of a soft map [G, N] that gives each of N image tokens a distribution over G groups."""
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
