"""Writes an evaluation's folder as `groupvit evaluate` does, of scores that the test chooses."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from groupvit.config import SegmentationConfig
from pipelines.evaluation.report import EvaluationReport, PartResult, write_report
from pipelines.evaluation.scoring import SceneResult, Scores

CLASSES = ("background", "dog", "boat", "kite")


def write_evaluation(
    folder: Path,
    image_iou: Mapping[str, Sequence[float]],
    *,
    seed: int = 0,
    step: int = 100,
    benchmark: str = "scenes",
    digest: str = "d" * 64,
    checkpoint: str = "nowhere/checkpoint",
    threshold: float = 0.5,
) -> Path:
    """`image_iou`: by part, each image's mIoU from 0 to 1 (NaN: it has none). Confusion matrices are drawn."""
    rng = np.random.default_rng(seed)
    scores = Scores()
    parts = {}
    for part, values in image_iou.items():
        for value in values:
            scene = len(scores.scenes)
            scores.scenes[scene] = SceneResult(
                sample_id=f"id-{scene}", part=part, mean_iou=value, pixel_accuracy=min(1.0, value + 0.1)
            )
        confusion = rng.integers(0, 100, (len(CLASSES), len(CLASSES))) + np.diag(rng.integers(100, 900, len(CLASSES)))
        parts[part] = PartResult(
            num_scenes=len(values),
            confusion=confusion,
            baselines={},
            oracle=None,
            boundary=np.stack([np.diag(confusion) // 4, confusion.sum(0) // 2], axis=1),
            usage=[],
        )
    report = EvaluationReport(
        checkpoint=checkpoint,
        benchmark=benchmark,
        root="data/scenes",
        data_digest=digest,
        step=step,
        license=None,
        classes=CLASSES,
        words=tuple((name,) for name in CLASSES[1:]),
        has_background=True,
        protocol="model",
        rules_changed=False,
        segmentation=SegmentationConfig(background_threshold=threshold),
        precision="float32",
        thresholds={"groups": threshold},
        parts=parts,
        num_scenes=len(scores.scenes),
        seconds=1.0,
    )
    write_report(report, scores, folder, save_predictions=False)
    return folder
