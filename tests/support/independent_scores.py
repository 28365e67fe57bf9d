"""What a benchmark's numbers ought to be, computed without our adapters and metrics: raw label files, read by rules
that are written out here, and the predictions an evaluation saved, compared class by class and pixel by pixel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

IGNORED = -1

NO_COCO_IDS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
COCO_IDS = [number for number in range(1, 183) if number not in NO_COCO_IDS]
CITYSCAPES_IDS = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]

NUM_CLASSES = {"voc21": 21, "voc20": 20, "context60": 60, "context59": 59}
NUM_CLASSES |= {"coco-object": 81, "coco-stuff": 171, "cityscapes": 19, "ade20k": 150}

LABEL_FILES = {
    "voc21": "VOCdevkit/VOC2012/SegmentationClass/*.png",
    "voc20": "VOCdevkit/VOC2012/SegmentationClass/*.png",
    "context60": "VOCdevkit/VOC2010/SegmentationClassContext/*.png",
    "context59": "VOCdevkit/VOC2010/SegmentationClassContext/*.png",
    "coco-object": "coco/annotations/val2017/*.png",
    "coco-stuff": "coco/annotations/val2017/*.png",
    "cityscapes": "cityscapes/gtFine/val/*/*_gtFine_labelIds.png",
    "ade20k": "ADEChallengeData2016/annotations/validation/*.png",
}


@dataclass(frozen=True)
class Numbers:
    """In percent; a class that is nowhere is None."""

    class_iou: list[float | None]
    miou: float
    pixel_accuracy: float
    boundary_miou: float


def class_of(benchmark: str, value: int) -> int:
    """The class index that a value of a label file means."""
    match benchmark:
        case "voc21":
            return IGNORED if value == 255 else value
        case "voc20":
            return IGNORED if value in (0, 255) else value - 1
        case "context60":
            return value
        case "context59" | "ade20k":
            return IGNORED if value == 0 else value - 1
        case "coco-object":  # things only; all else, unlabelled pixels too, is the background
            return 0 if value == 255 or value + 1 > 90 else 1 + COCO_IDS.index(value + 1)
        case "coco-stuff":
            return IGNORED if value == 255 else COCO_IDS.index(value + 1)
        case "cityscapes":
            return CITYSCAPES_IDS.index(value) if value in CITYSCAPES_IDS else IGNORED
    raise ValueError(benchmark)


def read_truths(root: Path, benchmark: str) -> list[np.ndarray]:
    """Per image: class indexes int [H, W], in the order of the predictions."""
    truths = []
    for file in sorted(root.glob(LABEL_FILES[benchmark])):
        with Image.open(file) as opened:
            values = np.array(opened)
        truth = np.full(values.shape, IGNORED)
        for value in np.unique(values).tolist():
            truth[values == value] = class_of(benchmark, value)
        truths.append(truth)
    assert truths
    return truths


def read_predictions(out: Path) -> dict[int, np.ndarray]:
    """By position of the image: class indexes int [H, W]."""
    predictions = {}
    for file in sorted((out / "predictions").glob("*.png")):
        with Image.open(file) as opened:
            predictions[int(file.stem)] = np.array(opened).astype(int)
    return predictions


def confusion(label_files: dict[int, Path], predictions: dict[int, np.ndarray], benchmark: str) -> np.ndarray:
    """int [C, C] of all pixels that count, rows are the truth: of raw label files and predictions by position."""
    matrix = np.zeros((NUM_CLASSES[benchmark], NUM_CLASSES[benchmark]), dtype=int)
    for index, file in label_files.items():
        with Image.open(file) as opened:
            values = np.array(opened)
        assert values.shape == predictions[index].shape, file
        for value in np.unique(values).tolist():
            truth = class_of(benchmark, value)
            if truth != IGNORED:
                matrix[truth] += np.bincount(predictions[index][values == value], minlength=len(matrix))
    return matrix


def mean_iou(matrix: np.ndarray) -> float:
    """In percent; classes that are neither there nor predicted are left out."""
    ious = []
    for label in range(len(matrix)):
        union = matrix[label].sum() + matrix[:, label].sum() - matrix[label, label]
        ious += [100 * matrix[label, label] / union] if union else []
    return sum(ious) / len(ious)


def numbers(truths: Sequence[np.ndarray], predictions: dict[int, np.ndarray], num_classes: int) -> Numbers:
    """All numbers of the images that have a prediction."""
    pairs = [(truths[index], prediction) for index, prediction in predictions.items()]
    ious: list[float | None] = []
    boundary_ious: list[float] = []
    hits = 0
    for label in range(num_classes):
        intersection = union = boundary_intersection = boundary_union = 0
        for truth, prediction in pairs:
            counted = truth != IGNORED
            true, found = truth == label, prediction == label
            intersection += int((true & found & counted).sum())
            union += int(((true | found) & counted).sum())
            if true.any() or found.any():
                true, found = boundary(true), boundary(found)
                boundary_intersection += int((true & found & counted).sum())
                boundary_union += int(((true | found) & counted).sum())
        hits += intersection
        ious.append(100 * intersection / union if union else None)
        if boundary_union:
            boundary_ious.append(100 * boundary_intersection / boundary_union)
    present = [iou for iou in ious if iou is not None]
    return Numbers(
        class_iou=ious,
        miou=sum(present) / len(present),
        pixel_accuracy=100 * hits / sum(int((truth != IGNORED).sum()) for truth, _ in pairs),
        boundary_miou=sum(boundary_ious) / len(boundary_ious),
    )


def boundary(mask: np.ndarray) -> np.ndarray:
    """The pixels of a mask that erosion takes away, one pixel at a time for 2 % of the image's diagonal."""
    steps = max(round(0.02 * (mask.shape[0] ** 2 + mask.shape[1] ** 2) ** 0.5), 1)
    inner = ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=steps, border_value=0)
    return mask & (np.asarray(inner) == 0)
