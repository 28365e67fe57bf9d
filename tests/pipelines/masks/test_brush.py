"""Label Studio's brush, against what its SDK and its editor's library made of the same masks."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest

from pipelines.masks.brush import decode_brush, encode_brush
from tests.support.drawn_masks import drawn_mask, soft_alpha

GOLDEN = json.loads((Path(__file__).parents[2] / "data/label_studio_brushes.json").read_text())


@pytest.mark.parametrize("name", list(GOLDEN["rle"]))
def test_masks_are_encoded_and_decoded_as_the_sdk_does(name: str) -> None:
    mask, golden = drawn_mask(name), list(base64.b64decode(GOLDEN["rle"][name]))
    assert encode_brush(mask) == golden
    np.testing.assert_array_equal(decode_brush(golden, *mask.shape), mask)


def test_what_the_editor_draws_with_a_soft_edge_is_decoded() -> None:
    alpha = soft_alpha()
    decoded = decode_brush(list(base64.b64decode(GOLDEN["editor"])), *alpha.shape)
    np.testing.assert_array_equal(decoded, alpha > 0)
    assert 0 < decoded.mean() < 1 and (alpha[decoded] < 255).any()


@pytest.mark.parametrize("share", [0.0, 0.03, 0.5, 0.97, 1.0])
def test_masks_come_back(share: float) -> None:
    rng = np.random.default_rng(0)
    for height, width in ((1, 1), (1, 40), (40, 1), (23, 31), (150, 200)):
        mask = rng.random((height, width)) < share
        np.testing.assert_array_equal(decode_brush(encode_brush(mask), height, width), mask)


def test_damaged_brushes_are_refused() -> None:
    good = encode_brush(drawn_mask("ellipse"))
    for rle, message in (
        ([], "not a list of bytes"),
        ([300, *good], "not a list of bytes"),
        (good[:3], "ends before"),
        (good[:40], "ends before the 97×61 pixels do"),
        (good[1:], "bytes, but 4 · 97 · 61 are expected"),
        (encode_brush(drawn_mask("wide")), "480,000 bytes, but"),
        ([*good[:4], 0xFF, *good[5:]], "values of 32 bits: 8 are expected"),
    ):
        with pytest.raises(ValueError, match=message):
            decode_brush(rle, 61, 97)


def test_no_damage_is_taken_for_anything_else() -> None:
    rng = np.random.default_rng(1)
    good = np.array(encode_brush(drawn_mask("stripes")))
    messages = []
    for _ in range(200):
        damaged = good.copy()
        damaged[rng.integers(4, len(good), 3)] = rng.integers(0, 256, 3)
        try:
            assert decode_brush(damaged.tolist(), 61, 97).shape == (61, 97)
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > 20 and not [message for message in messages if "\n" in message]
