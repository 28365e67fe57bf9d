"""What a worker of an evaluation refuses; its sums are checked in test_evaluate.py."""

from pathlib import Path

import pytest
import torch

from groupvit.config import SegmentationConfig
from pipelines.benchmarks.scenes import open_scenes
from pipelines.evaluation.scoring import Method, Scorer, Task
from tests.support.scenes_folder import write_scenes
from tests.support.small_checkpoint import contrasting_model


def test_a_score_that_is_not_finite_ends_the_evaluation_and_names_the_image(tmp_path: Path) -> None:
    model = contrasting_model()
    with torch.no_grad():
        model.image_projector.out.bias[0] = torch.inf
    dataset = open_scenes(str(write_scenes(tmp_path / "scenes", 3)))
    method = Method(name="groups", segmentation=SegmentationConfig(short_side=64, window=None), thresholds=(0.1,))
    task = Task(dataset=dataset, methods=(method,), details=False)
    block = next(iter(dataset.blocks(range(3), 3)))
    first = next(iter(dataset.read(block))).sample_id
    with pytest.raises(ValueError, match=rf"image {first}: .* scores are not finite"):
        Scorer(model, num_threads=1).score(task, block)
