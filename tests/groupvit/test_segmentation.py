"""Segmentation against the golden files, and the parts of the protocol that they do not cover."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from groupvit.config import SegmentationConfig
from groupvit.finishing import to_tensor
from groupvit.interop import official
from groupvit.model import GroupViT
from groupvit.resizing import windows
from groupvit.segmentation import (
    PixelScores,
    Words,
    predict,
    predict_groups,
    segment_logits,
    segment_scores,
)
from groupvit.windows import encode_window, group_maps

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
WHOLE = SegmentationConfig(short_side=64, window=None, background_threshold=0.35)


def load_golden(name: str) -> tuple[GroupViT, dict[str, Tensor]]:
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    weights = {key.removeprefix("weights/"): value for key, value in tensors.items() if key.startswith("weights/")}
    heads, size = {"two_stage": ((4, 4, 4), 64), "one_stage": ((2, 2), 32)}[name]
    return official.from_official(weights, num_heads=heads, image_size=size).eval(), tensors


@pytest.fixture(scope="module")
def two_stage() -> tuple[GroupViT, dict[str, Tensor]]:
    return load_golden("two_stage")


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    blocks = np.random.default_rng(3).integers(0, 255, (6, 9, 3), dtype=np.uint8)
    return blocks.repeat(16, axis=0).repeat(16, axis=1)


@pytest.mark.parametrize("name", ["one_stage", "two_stage"])
@pytest.mark.parametrize("threshold", [0.95, 0.35, None])
def test_logits_equal_the_golden_ones(name: str, threshold: float | None) -> None:
    model, tensors = load_golden(name)
    logits = segment_logits(model, tensors["input/image_rect"], tensors["seg/class_embeddings"], threshold)
    expected = tensors["seg/logits_no_background" if threshold is None else f"seg/logits_background_{threshold}"]
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


def test_group_maps_are_products_of_the_stages_assignments(two_stage: tuple[GroupViT, dict[str, Tensor]]) -> None:
    model, tensors = two_stage
    with torch.inference_mode():
        first, last = group_maps(model.image_encoder(tensors["input/image"]))
    assert first.shape == (3, 12, 8, 8) and last.shape == (3, 4, 8, 8)
    expected = torch.einsum("bgs,bsn->bgn", tensors["encoder/soft_assignment_1"], tensors["encoder/soft_assignment_0"])
    torch.testing.assert_close(last.flatten(2), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(last.sum(dim=1), torch.ones(3, 8, 8))


def test_the_most_certain_group_keeps_its_label_below_the_threshold() -> None:
    classes = torch.tensor([[[0.30, 0.10]], [[0.05, 0.20]]])
    scores = PixelScores(classes=classes, background=None, ceiling=torch.tensor(0.30))
    assert labels_at(scores, 0.95) == [[1, 0]]
    assert labels_at(scores, 0.15) == [[1, 2]]
    # A group without pixels is more certain than all others: everything is background.
    assert labels_at(replace(scores, ceiling=torch.tensor(0.9)), 0.95) == [[0, 0]]


def labels_at(scores: PixelScores, threshold: float, config: SegmentationConfig = WHOLE) -> list[list[int]]:
    return torch.cat([scores.backgrounds([threshold], config), scores.classes]).argmax(dim=0).tolist()


def test_a_constant_background_competes_as_a_class() -> None:
    classes = torch.tensor([[[0.45, 0.10]], [[0.05, 0.60]]])
    scores = PixelScores(classes=classes, background=None, ceiling=torch.tensor(0.9))
    constant = replace(WHOLE, background_rule="constant")
    assert [labels_at(scores, threshold, constant) for threshold in (0.4, 0.5, 0.7)] == [[[1, 2]], [[0, 2]], [[0, 0]]]


def test_background_prompts_win_where_they_score_best() -> None:
    classes = torch.tensor([[[0.5, 0.5]]])
    scores = PixelScores(
        classes=classes, background=torch.tensor([[[0.6, 0.4]], [[0.1, 0.2]]]), ceiling=torch.tensor(0.5)
    )
    assert labels_at(scores, 0.0) == [[0, 1]]


def test_only_the_top_classes_of_the_window_score(two_stage: tuple[GroupViT, dict[str, Tensor]]) -> None:
    model, tensors = two_stage
    for top, expected in ((5, 5), (2, 2), (None, 9), (50, 9)):
        config = replace(WHOLE, top_classes=top)
        logits = segment_logits(
            model, tensors["input/image_rect"], tensors["seg/class_embeddings"], None, config=config
        )
        assert int((logits.flatten(1).amax(dim=1) > 0).sum()) == expected


@pytest.mark.parametrize(
    ("length", "expected"),
    [(448, [0]), (449, [0, 1]), (672, [0, 224]), (673, [0, 224, 225]), (300, [0]), (1000, [0, 224, 448, 552])],
)
def test_windows_cover_the_image_and_the_last_lies_inside(length: int, expected: list[int]) -> None:
    boxes = list(windows(448, length, 448, 224))
    assert [left for _, _, left, _ in boxes] == expected
    assert all((top, bottom) == (0, 448) and right - left == min(length, 448) for top, bottom, left, right in boxes)
    assert max(right for *_, right in boxes) == length


def test_overlapping_windows_are_averaged(two_stage: tuple[GroupViT, dict[str, Tensor]], picture: np.ndarray) -> None:
    """`predict` on an image already of the right size, recomputed by hand from its windows."""
    model, tensors = two_stage
    classes = tensors["seg/class_embeddings"]
    config = replace(WHOLE, short_side=96, window=64, stride=32)
    pixels = to_tensor(picture)[None]
    total, times = torch.zeros(10, 96, 144), torch.zeros(96, 144)
    for top in (0, 32):
        for left in (0, 32, 64, 80):
            part = pixels[..., top : top + 64, left : left + 64]
            total[:, top : top + 64, left : left + 64] += segment_logits(model, part, classes, 0.35, config=config)
            times[top : top + 64, left : left + 64] += 1
    [labels] = predict(model, picture, classes, config)
    assert len(np.unique(labels)) > 1
    np.testing.assert_array_equal(labels, (total / times).argmax(dim=0).numpy())


def test_whole_image_of_any_size_gets_labels_of_its_own_size(two_stage: tuple[GroupViT, dict[str, Tensor]]) -> None:
    model, tensors = two_stage
    for height, width in ((50, 71), (300, 31), (17, 16)):
        image = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
        [labels] = predict(model, image, tensors["seg/class_embeddings"], WHOLE)
        assert labels.shape == (height, width) and labels.dtype == np.uint8


def test_thresholds_share_one_pass_and_equal_single_predictions(
    two_stage: tuple[GroupViT, dict[str, Tensor]], picture: np.ndarray
) -> None:
    model, tensors = two_stage
    classes = tensors["seg/class_embeddings"]
    config = replace(WHOLE, scales=(1.0, 1.5), flip=True)
    together = predict(model, picture, classes, config, thresholds=(0.0, 0.35, None))
    for threshold, labels in zip((0.0, 0.35, None), together, strict=True):
        [alone] = predict(model, picture, classes, replace(config, background_threshold=threshold))
        np.testing.assert_array_equal(labels, alone)
    assert (together[0] != together[1]).any()


def test_flip_makes_the_result_symmetric(two_stage: tuple[GroupViT, dict[str, Tensor]], picture: np.ndarray) -> None:
    model, tensors = two_stage
    config = replace(WHOLE, flip=True, masks="soft", short_side=96)
    [labels] = predict(model, picture, tensors["seg/class_embeddings"], config)
    [mirrored] = predict(model, np.ascontiguousarray(picture[:, ::-1]), tensors["seg/class_embeddings"], config)
    assert (mirrored[:, ::-1] == labels).mean() > 0.999  # but for ties in rounding


def test_soft_masks_mix_the_groups_scores(two_stage: tuple[GroupViT, dict[str, Tensor]]) -> None:
    model, tensors = two_stage
    image, classes = tensors["input/image_rect"], tensors["seg/class_embeddings"]
    hard = segment_logits(model, image, classes, None, config=WHOLE)
    soft = segment_logits(model, image, classes, None, config=replace(WHOLE, masks="soft"))
    assert len(torch.unique(hard.flatten(1), dim=1).T) <= 4 < len(torch.unique(soft.flatten(1), dim=1).T)
    assert float(soft.max()) <= float(hard.max()) + 1e-6


def test_without_grouping_every_image_token_is_its_own_segment(two_stage: tuple[GroupViT, dict[str, Tensor]]) -> None:
    model, tensors = two_stage
    image, classes = tensors["input/image_rect"], tensors["seg/class_embeddings"]
    config = replace(WHOLE, grouping=False, top_classes=None)
    with torch.inference_mode():
        window = encode_window(model, image[0], grouping=False)
        scores = segment_scores(window, Words.of(model, classes, None, config), config)
        tokens = torch.nn.functional.normalize(
            model.embed_image_tokens(model.image_encoder(image).image_tokens)[0], dim=-1
        )
        expected = (model.logit_scale.exp() * tokens @ classes.T).softmax(dim=-1)
    torch.testing.assert_close(scores.classes, expected.T, atol=1e-5, rtol=0)
    assert float(scores.ceiling) == pytest.approx(float(expected.max()), abs=1e-5)
    # The mean over a token's 8 x 8 pixels is its own score, up to the slope towards its neighbours.
    pixels = segment_logits(model, image, classes, None, config=config)
    assert pixels.shape == (9, 64, 96)
    assert int(pixels[:, 24:32, 24:32].mean(dim=(1, 2)).argmax()) == int(expected.view(8, 12, 9)[3, 3].argmax())


def test_groups_for_pictures_cover_the_whole_image(
    two_stage: tuple[GroupViT, dict[str, Tensor]], picture: np.ndarray
) -> None:
    model, _ = two_stage
    first, last = predict_groups(model, picture, replace(WHOLE, window=64, stride=32))
    assert first.shape == (12, 8, 12) and last.shape == (4, 8, 12)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"window": 64, "stride": 65}, "stride 65"),
        ({"background_threshold": None, "background_prompts": ("sky",)}, "background_prompts"),
        ({"top_classes": 0}, "top_classes"),
        ({"scales": ()}, "scales"),
    ],
)
def test_wrong_options_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SegmentationConfig(**fields)
