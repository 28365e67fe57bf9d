"""COCO's run lengths and polygons, against what pycocotools made of the same masks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.masks.coco import box_of, decode_mask, encode_mask, fill_polygons
from tests.support.drawn_masks import drawn_mask

DATA = Path(__file__).parents[2] / "data"
COUNTS = json.loads((DATA / "pycocotools_masks.json").read_text())["counts"]
POLYGONS = json.loads((DATA / "pycocotools_polygons.json").read_text())["cases"]


@pytest.mark.parametrize("name", list(COUNTS))
def test_masks_are_encoded_and_decoded_as_pycocotools_does(name: str) -> None:
    mask = drawn_mask(name)
    assert encode_mask(mask) == COUNTS[name]
    np.testing.assert_array_equal(decode_mask(COUNTS[name], *mask.shape), mask)


@pytest.mark.parametrize("share", [0.0, 0.03, 0.5, 0.97, 1.0])
def test_masks_come_back(share: float) -> None:
    rng = np.random.default_rng(0)
    for height, width in ((1, 1), (1, 40), (40, 1), (23, 31), (200, 300)):
        mask = rng.random((height, width)) < share
        np.testing.assert_array_equal(decode_mask(encode_mask(mask), height, width), mask)


def test_runs_may_be_given_as_numbers() -> None:
    np.testing.assert_array_equal(decode_mask([1, 2, 3], 2, 3), [[False, True, False], [True, False, False]])


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([3, 4], "do not add up"),
        ([10, -4], "do not add up"),
        ([], "do not add up"),
        (COUNTS["ellipse"], "do not add up"),
        ("1\x05", "where none can be"),
        ("Ý", "where none can be"),
        ("o" * 40, "where none can be"),
        ("1o", "ends within a number"),
    ],
)
def test_damaged_runs_are_refused(counts: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_mask(counts, 2, 3)


@pytest.mark.parametrize("case", POLYGONS, ids=[case["name"] for case in POLYGONS])
def test_polygons_are_filled_as_pycocotools_does(case: dict[str, Any]) -> None:
    assert encode_mask(fill_polygons(case["polygons"], case["height"], case["width"])) == case["counts"]


@pytest.mark.parametrize(
    ("polygon", "message"),
    [
        ([1, 1, 5, 5], "has 4 numbers: give x and y of three points"),
        ([1, 1, 5, 5, 1, 5, 3], "has 7 numbers"),
        ([1, 1, 5, 5, 1e9, 5], "far outside the image of 20×10"),
        ([1, 1, float("nan"), 5, 1, 5], "far outside"),
        ([0, 0, 20, 10] * 400_000, "more than 67,108,864 points"),
    ],
)
def test_polygons_that_no_image_has_are_refused(polygon: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fill_polygons([polygon], 10, 20)


def test_the_box_holds_the_mask_tightly() -> None:
    mask = np.zeros((20, 30), dtype=bool)
    mask[3:7, 11] = mask[5, 8:20] = True
    assert box_of(mask) == [8, 3, 12, 4]
