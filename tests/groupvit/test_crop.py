"""The random resized crop, against timm's and Pillow's."""

import random

import numpy as np
import pytest
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation

from groupvit.crop import Box, draw_box, resize_by_pillow, resize_by_torch


def picture(height: int, width: int) -> np.ndarray:
    """Smooth areas with noise: each weight of a resize matters somewhere."""
    rng = np.random.default_rng(height * 1000 + width)
    small = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return np.clip(smooth + rng.integers(-40, 41, smooth.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(("height", "width"), [(61, 83), (300, 200), (16, 200), (200, 16)])
def test_box_equals_timm_draw_for_draw(height, width):
    timm_crop = RandomResizedCropAndInterpolation(32)
    image = Image.fromarray(picture(height, width))
    for seed in range(200):
        random.seed(seed)
        expected = timm_crop.get_params(image, timm_crop.scale, timm_crop.ratio)
        assert draw_box(height, width, timm_crop.scale, timm_crop.ratio, random.Random(seed)) == expected


def test_the_smallest_image_can_be_cropped():
    for seed in range(50):  # timm's arithmetic can give an empty crop here
        assert draw_box(1, 1, (0.08, 1.0), (3 / 4, 4 / 3), random.Random(seed)) == (0, 0, 1, 1)


def test_a_box_cuts_its_rectangle_at_any_scale():
    pixels = (np.arange(80 * 60) % 251).astype(np.uint8).reshape(80, 60)
    box = Box(17, 9, 40, 33)
    np.testing.assert_array_equal(box.cut(pixels), pixels[17:57, 9:42])
    assert box.reduced(1) == box and box.reduced(4) == (4, 2, 10, 9)


def test_a_reduced_box_lies_in_the_reduced_image():
    rng = random.Random(0)
    for _ in range(2000):
        height, width, divisor = rng.randint(8, 40), rng.randint(8, 40), rng.choice((2, 4, 8))
        box = draw_box(height, width, (0.3, 1.0), (0.5, 2.0), rng)
        if min(box.height, box.width) < divisor:
            continue
        top, left, rows, columns = box.reduced(divisor)
        assert min(top, left) >= 0 and min(rows, columns) >= 1
        assert top + rows <= -(-height // divisor) and left + columns <= -(-width // divisor)


@pytest.mark.parametrize(("height", "width"), [(256, 341), (97, 51), (224, 224), (30, 900), (3, 2), (1, 1)])
def test_torch_resizes_like_pillow_within_rounding(height, width):
    whole = picture(height + 10, width + 20)
    crop = Box(4, 7, height, width).cut(whole)  # a view, whose rows are not next to each other
    expected = np.asarray(resize_by_pillow(crop, 224)).astype(int)
    difference = np.abs(resize_by_torch(crop, 224) - expected)
    assert difference.max() <= 2 and (difference > 0).mean() < 0.01
    np.testing.assert_array_equal(resize_by_torch(crop, 224), resize_by_torch(np.ascontiguousarray(crop), 224))


def test_torch_writes_rows_of_pixels_next_to_each_other():
    square = resize_by_torch(picture(50, 70), 32)
    assert square.shape == (32, 32, 3) and square.dtype == np.uint8 and square.flags.c_contiguous
