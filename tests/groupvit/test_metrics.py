"""Metrics against torchmetrics, against sums by hand, and at their edges."""

import math

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassJaccardIndex

from groupvit.metrics import (
    GroupUsage,
    best_classes,
    boundary_counts,
    confusion_matrix,
    group_usage,
    mean_boundary_iou,
    segmentation_metrics,
)


def random_labels(num_classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, num_classes, (40, 50), dtype=np.uint8)
    prediction = np.where(rng.random((40, 50)) < 0.6, truth, rng.integers(0, num_classes, (40, 50))).astype(np.uint8)
    truth[rng.random((40, 50)) < 0.1] = 255
    return truth, prediction


def test_equal_to_torchmetrics() -> None:
    truth, prediction = random_labels(7, seed=0)
    matrix = confusion_matrix(truth, prediction, 7)
    given = (torch.from_numpy(prediction).long(), torch.from_numpy(truth).long())
    np.testing.assert_array_equal(matrix, MulticlassConfusionMatrix(7, ignore_index=255)(*given).numpy())
    metrics = segmentation_metrics(matrix)
    np.testing.assert_allclose(
        metrics.class_iou, MulticlassJaccardIndex(7, average="none", ignore_index=255)(*given).numpy(), rtol=1e-6
    )
    assert metrics.mean_iou == pytest.approx(float(metrics.class_iou.mean()))
    assert metrics.pixel_accuracy == pytest.approx((truth == prediction)[truth != 255].mean())


def test_matrices_of_parts_add_up() -> None:
    truth, prediction = random_labels(5, seed=1)
    parts = sum(
        confusion_matrix(truth[rows], prediction[rows], 5) for rows in (slice(0, 7), slice(7, 31), slice(31, 40))
    )
    np.testing.assert_array_equal(parts, confusion_matrix(truth, prediction, 5))


def test_rows_are_the_truth() -> None:
    matrix = confusion_matrix(np.array([[0, 0, 1, 255]]), np.array([[0, 1, 1, 1]]), 2)
    assert matrix.tolist() == [[1, 1], [0, 1]]


def test_a_class_that_never_occurs_is_left_out_of_the_mean() -> None:
    metrics = segmentation_metrics(np.array([[6, 2, 0], [0, 4, 0], [0, 0, 0]]))
    assert math.isnan(metrics.class_iou[2]) and math.isnan(metrics.class_accuracy[2])
    assert metrics.mean_iou == pytest.approx((6 / 8 + 4 / 6) / 2)


def test_wrong_labels_and_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="prediction holds 0 to 3"):
        confusion_matrix(np.array([0, 1]), np.array([0, 3]), 3)
    with pytest.raises(ValueError, match="equal shapes"):
        confusion_matrix(np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8), 3)
    with pytest.raises(ValueError, match="empty"):
        segmentation_metrics(confusion_matrix(np.full((2, 2), 255), np.zeros((2, 2), np.uint8), 3))


def test_each_group_gets_the_class_it_overlaps_best() -> None:
    truth = np.array([[0, 0, 0, 0, 1, 1, 2, 255]], dtype=np.uint8)
    groups = np.array([[0, 0, 0, 1, 1, 1, 2, 2]])
    assert best_classes(groups, truth, 4, 3).tolist() == [0, 1, 2, 0]  # the last has no pixel
    # IoU, not majority: three of the group's five pixels are of class 0, but it covers all of class 1.
    truth = np.array([[0] * 13 + [1, 1]], dtype=np.uint8)
    assert best_classes(np.array([[0] * 10 + [1] * 5]), truth, 2, 2).tolist() == [0, 1]


def boundary_by_hand(labels: np.ndarray, reach: int) -> np.ndarray:
    """Pixels with another label, or the outside, within `reach` rows and columns."""
    height, width = labels.shape
    near = np.zeros(labels.shape, bool)
    for y in range(height):
        for x in range(width):
            inside = y - reach >= 0 and x - reach >= 0 and y + reach < height and x + reach < width
            around = labels[max(y - reach, 0) : y + reach + 1, max(x - reach, 0) : x + reach + 1]
            near[y, x] = not inside or bool((around != labels[y, x]).any())
    return near


def test_boundary_counts_by_hand() -> None:
    rng = np.random.default_rng(4)
    truth = rng.integers(0, 3, (6, 9), dtype=np.uint8).repeat(14, axis=0).repeat(13, axis=1)
    prediction = np.roll(truth, 2, axis=1)
    truth[30:34] = 255
    reach = round(0.02 * math.hypot(*truth.shape))
    assert reach == 3
    counted = truth != 255
    of_truth, of_prediction = (boundary_by_hand(labels, reach) & counted for labels in (truth, prediction))
    expected = [
        [
            int((of_truth & of_prediction & (truth == c) & (prediction == c)).sum()),
            int(((of_truth & (truth == c)) | (of_prediction & (prediction == c))).sum()),
        ]
        for c in range(3)
    ]
    counts = boundary_counts(truth, prediction, 4)
    assert counts.tolist() == [*expected, [0, 0]]
    assert mean_boundary_iou(counts) == pytest.approx(np.mean([both / either for both, either in expected]))
    assert mean_boundary_iou(boundary_counts(truth, truth, 4)) == 1.0


def test_group_usage_of_even_and_of_collapsed_groups() -> None:
    even = group_usage(np.eye(4).repeat(5, axis=1))
    assert even.entropy == pytest.approx(math.log(4)) and even.empty_rate == 0 and even.overlap == pytest.approx(0)
    collapsed = group_usage(np.full((4, 20), 0.25))
    assert collapsed.entropy == 0 and collapsed.empty_rate == 0.75 and collapsed.overlap == pytest.approx(1)
    assert group_usage(np.ones((1, 20))).overlap == 0
    mean = GroupUsage.mean([even, collapsed])
    assert mean.entropy == pytest.approx(math.log(4) / 2) and mean.empty_rate == 0.375
