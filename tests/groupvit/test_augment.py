"""The draws of RandAugment and colour jitter, and their operations with Pillow, against timm's."""

import random

import numpy as np
import pytest
from PIL import Image
from timm.data.auto_augment import RandAugment
from timm.data.transforms_factory import create_transform

from groupvit import augment
from groupvit.augment import OPERATIONS, Operation, apply_with_pillow, draw_color_jitter, draw_rand_augment
from groupvit.finishing import IMAGENET_MEAN


def picture(height: int, width: int) -> Image.Image:
    small = np.random.default_rng(height * 1000 + width).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def timm_augment() -> RandAugment:
    """The paper's RandAugment as timm builds it."""
    stages = create_transform(224, True, auto_augment="rand-m9-mstd0.5-inc1", interpolation="bilinear", separate=True)
    return next(step for step in stages[1].transforms if isinstance(step, RandAugment))  # pyright: ignore


def test_rand_augment_equals_timm_draw_for_draw(timm_augment: RandAugment) -> None:
    assert timm_augment.num_layers == 2
    assert {operation.name for operation in timm_augment.ops} == set(OPERATIONS)
    image = picture(64, 64)
    for operation in timm_augment.ops:
        for seed in range(60):
            random.seed(seed)
            expected = np.asarray(operation(image))
            drawn = augment._draw_argument(operation.name, random.Random(seed))
            actual = np.asarray(apply_with_pillow(image, [drawn]))
            np.testing.assert_array_equal(actual, expected, err_msg=f"{operation.name} {seed}")


def test_rand_augment_draws_all_operations_alike() -> None:
    rng = random.Random(0)
    drawn = [operation for _ in range(6000) for operation in draw_rand_augment(rng)]
    counts = np.array([sum(o is not None and o.name == name for o in drawn) for name in OPERATIONS])
    assert len(drawn) == 12_000 and counts.size == 15
    assert abs(counts.sum() - 6000) < 5 * np.sqrt(3000)
    assert np.abs(counts - 400).max() < 5 * np.sqrt(400)


def test_two_operations_follow_each_other_with_draws_of_their_own() -> None:
    first, second = draw_rand_augment(random.Random(1))
    rng = random.Random(1)
    names = rng.choices(OPERATIONS, k=2)
    assert [augment._draw_argument(name, rng) for name in names] == [first, second]
    invert, posterize = Operation("Invert", None), Operation("PosterizeIncreasing", 1)
    image = Image.new("RGB", (4, 4), (100, 200, 255))
    assert apply_with_pillow(image, [invert, None, posterize]).getpixel((0, 0)) == (128, 0, 0)
    assert apply_with_pillow(image, [posterize, invert]).getpixel((0, 0)) == (255, 127, 127)


def test_posterize_survives_the_largest_magnitude() -> None:
    class Largest(random.Random):
        def random(self) -> float:
            return 0.0

        def gauss(self, mu: float = 0.0, sigma: float = 1.0) -> float:
            return 12.0

    apply_with_pillow(picture(8, 8), [augment._draw_argument("PosterizeIncreasing", Largest())])


def test_colour_jitter_is_brightness_contrast_and_saturation_within_its_share() -> None:
    rng = random.Random(0)
    drawn = [draw_color_jitter(0.2, rng) for _ in range(300)]
    names = ["BrightnessIncreasing", "ContrastIncreasing", "ColorIncreasing"]
    assert all([operation.name for operation in operations if operation] == names for operations in drawn)
    factors = np.array([[operation.argument for operation in operations if operation] for operations in drawn])
    assert np.allclose(factors.min(0), 0.8, atol=0.01) and np.allclose(factors.max(0), 1.2, atol=0.01)


def test_the_fill_is_imagenets_mean() -> None:
    assert tuple(round(255 * mean) for mean in IMAGENET_MEAN) == augment.FILL
