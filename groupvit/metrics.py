"""Segmentation metrics on label maps, and how evenly a model uses its groups. NumPy only.

Everything about accuracy comes from one confusion matrix of whole pixels. Matrices of parts of a data set add up, so
the result does not depend on how the data set was divided among workers.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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


def oracle_labels(
    groups: NDArray[np.integer], truth: NDArray[np.integer], num_classes: int, ignore_index: int = IGNORE_INDEX
) -> NDArray[np.uint8]:
    """The best labels these groups allow: each takes the true class with which its pixels have the highest IoU.

    groups, truth: [H, W]. Returns uint8 [H, W]. What is wrong with these labels is wrong with the masks, not with the
    words (the "oracle mIoU" of the paper's table C.3).
    """
    counted = truth != ignore_index
    num_groups = int(groups.max()) + 1
    pairs = groups[counted].astype(np.int64) * num_classes + truth[counted].astype(np.int64)
    shared = np.bincount(pairs, minlength=num_groups * num_classes).reshape(num_groups, num_classes)
    union = shared.sum(axis=1, keepdims=True) + shared.sum(axis=0, keepdims=True) - shared
    best_class = (shared / np.maximum(union, 1)).argmax(axis=1).astype(np.uint8)
    return best_class[groups]


@dataclass(frozen=True, kw_only=True)
class GroupUsage:
    """How one image uses the groups of a stage; collapsed grouping shows as low entropy and many empty groups."""

    entropy: float
    """Of the distribution of image tokens over groups, in nats: 0 if one has all, ln(G) if all have equal shares."""
    empty_rate: float
    """Fraction of groups that no image token chose."""
    overlap: float
    """Mean cosine similarity of two groups' soft maps: 0 if disjoint, 1 if all are the same. 0 for a single group."""


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
