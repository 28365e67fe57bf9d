"""Augmentation in batches against Pillow and timm, one image at a time."""

import random
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from groupvit.augment import OPERATIONS, Operation, _draw_argument, apply_with_pillow, operation_columns
from groupvit.device_augment import Augmentation, augment, erase
from groupvit.noise import normal_noise
from groupvit.transforms import TrainSample, TrainTransform

GEOMETRIC = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")


def natural(height: int, width: int, seed: int) -> npt.NDArray[np.uint8]:
    """Smooth colours with a little noise, and areas that are black, white, or of one colour."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)) * rng.uniform(0.3, 1.4)
    pixels = np.clip(smooth + rng.normal(0, 4, smooth.shape) + rng.uniform(-30, 30), 0, 255).astype(np.uint8)
    pixels[: height // 6, : width // 4] = rng.integers(0, 256, 3)
    return pixels


def unusual(height: int, width: int) -> list[npt.NDArray[np.uint8]]:
    shape = (height, width, 3)
    gray = np.full(shape, 77, np.uint8)
    two = np.where(np.arange(width)[:, None] < 3, 10, 11).astype(np.uint8) * np.ones(shape, np.uint8)
    step = np.full(shape, 255, np.uint8)
    step[0, 0] = 0, 254, 1
    return [gray, two, step, np.zeros(shape, np.uint8)]


def images_of(height: int, width: int) -> list[npt.NDArray[np.uint8]]:
    noise = np.random.default_rng(0).integers(0, 256, (6, height, width, 3), dtype=np.uint8)
    return [*noise, *(natural(height, width, seed) for seed in range(20)), *unusual(height, width)]


def columns_of(images: list[npt.NDArray[np.uint8]], drawn: list[list[Operation | None]]) -> dict[str, Any]:
    """Columns of a slice: nothing is mirrored or erased."""
    operations, arguments = operation_columns(drawn)
    return {
        "image": np.stack(images).transpose(0, 3, 1, 2),
        "flip": np.zeros(len(images), bool),
        "operations": operations,
        "arguments": arguments,
        "erase_box": np.zeros((len(images), 4), np.int16),
        "noise_seed": np.zeros(len(images), np.int64),
    }


def augmented(columns: dict[str, Any]) -> npt.NDArray[np.uint8]:
    """[n,H,W,3]."""
    return augment(torch.tensor(columns["image"]), Augmentation.of(columns)).permute(0, 2, 3, 1).numpy()


def drawn_often(name: str, num: int, rng: random.Random) -> list[Operation]:
    """Arguments as RandAugment draws them."""
    drawn = (_draw_argument(name, rng) for _ in range(10 * num))
    return [operation for operation in drawn if operation is not None][:num]


@pytest.mark.parametrize("shape", [(64, 64), (40, 56)])
@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_equals_pillows(name: str, shape: tuple[int, int]) -> None:
    images = images_of(*shape)
    operations = drawn_often(name, len(images), random.Random(OPERATIONS.index(name)))
    expected = np.stack(
        [
            np.asarray(apply_with_pillow(Image.fromarray(image), [operation]))
            for image, operation in zip(images, operations, strict=True)
        ]
    )
    actual = augmented(columns_of(images, [[operation] for operation in operations]))
    if name in GEOMETRIC:  # sampled in float32 instead of float64, then cut
        difference = np.abs(actual.astype(int) - expected)
        assert difference.max() <= 1 and (difference > 0).mean() < 0.01
    else:
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("name", ["ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing"])
def test_factors_around_one_equal_pillows(name: str) -> None:
    images = images_of(48, 48)
    for factor in (0.0, 0.7, 0.999, 1.0, 1.3, 2.0):
        operation = Operation(name, factor)
        expected = [np.asarray(apply_with_pillow(Image.fromarray(image), [operation])) for image in images]
        np.testing.assert_array_equal(augmented(columns_of(images, [[operation]] * len(images))), np.stack(expected))


@pytest.mark.parametrize(("bits", "threshold", "added"), [(0, 0, 0), (1, 256, 110), (4, 26, 99)])
def test_the_ends_of_tables_equal_pillows(bits: int, threshold: int, added: int) -> None:
    images = images_of(32, 32)
    for operation in (
        Operation("PosterizeIncreasing", bits),
        Operation("SolarizeIncreasing", threshold),
        Operation("SolarizeAdd", added),
    ):
        expected = [np.asarray(apply_with_pillow(Image.fromarray(image), [operation])) for image in images]
        np.testing.assert_array_equal(augmented(columns_of(images, [[operation]] * len(images))), np.stack(expected))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_smallest_images(size: int) -> None:
    images = images_of(size, size)
    for name in OPERATIONS:
        operations = drawn_often(name, len(images), random.Random(0))
        actual = augmented(columns_of(images, [[operation] for operation in operations]))
        for image, operation, result in zip(images, operations, actual, strict=True):
            expected = np.asarray(apply_with_pillow(Image.fromarray(image), [operation])).astype(int)
            assert np.abs(result - expected).max() <= (name in GEOMETRIC), (name, size)


def samples_of(transform: TrainTransform, num: int) -> list[TrainSample]:
    return [transform(natural(90, 120, seed), seed) for seed in range(num)]


def slice_of(samples: list[TrainSample]) -> dict[str, Any]:
    operations, arguments = operation_columns([sample.operations for sample in samples])
    return {
        "image": np.stack([sample.image for sample in samples]),
        "flip": np.array([sample.flip for sample in samples]),
        "erase_box": np.stack([sample.erase_box for sample in samples]),
        "noise_seed": np.array([sample.noise_seed for sample in samples]),
        **({"operations": operations, "arguments": arguments} if operations.size else {}),
    }


@pytest.mark.parametrize(
    ("recipe", "color_jitter", "exact"), [("deit", 0.0, 0.9999), ("crop_flip", 0.4, 1.0), ("crop_flip", 0.0, 1.0)]
)
def test_the_whole_is_what_the_reading_process_makes(recipe: Any, color_jitter: float, exact: float) -> None:
    cpu = samples_of(TrainTransform(image_size=48, recipe=recipe, color_jitter=color_jitter), 150)
    device = samples_of(
        TrainTransform(image_size=48, recipe=recipe, color_jitter=color_jitter, augment_on="device"), 150
    )
    expected, columns = np.stack([sample.image for sample in cpu]), slice_of(device)
    assert not any(sample.flip or sample.operations for sample in cpu)
    assert 40 < columns["flip"].sum() < 110
    assert np.array_equal(columns["noise_seed"], [sample.noise_seed for sample in cpu])
    assert np.array_equal(columns["erase_box"], np.stack([sample.erase_box for sample in cpu]))
    before = columns["image"].copy()
    actual = augment(torch.from_numpy(columns["image"]), Augmentation.of(columns)).numpy()
    assert np.array_equal(columns["image"], before)
    assert (expected != before).mean() > 0.3
    # A 1 between the rounds may be more after the second: a threshold lies between two values.
    assert (actual == expected).mean() >= exact
    assert np.abs(actual.astype(int) - expected).mean() < 0.001


def test_a_sample_does_not_depend_on_its_batch() -> None:
    columns = slice_of(samples_of(TrainTransform(image_size=32, augment_on="device"), 40))
    whole = augment(torch.from_numpy(columns["image"]), Augmentation.of(columns))
    halves = [{name: column[part] for name, column in columns.items()} for part in (slice(0, 7), slice(7, 40))]
    parts = [augment(torch.from_numpy(half["image"]), Augmentation.of(half)) for half in halves]
    assert torch.equal(torch.cat(parts), whole)


def test_rectangles_are_filled_with_the_noise_of_their_pixels() -> None:
    columns = columns_of([natural(40, 56, 0)] * 5, [[]] * 5)
    columns["erase_box"] = np.array([[0, 0, 0, 0], [3, 25, 30, 20], [0, 0, 40, 56], [39, 55, 1, 1], [4, 4, 9, 0]])
    columns["noise_seed"] = np.array([1, 2**63 - 1, 2, 3, 4])
    images = torch.full((5, 3, 40, 56), 9.0)
    erase(images, Augmentation.of(columns))
    noise = normal_noise(torch.tensor(columns["noise_seed"])[:, None], torch.arange(3 * 40 * 56)).view(5, 3, 40, 56)
    expected = torch.full((5, 3, 40, 56), 9.0)
    for image, values, (top, left, height, width) in zip(expected, noise, columns["erase_box"].tolist(), strict=True):
        inside = (slice(None), slice(top, top + height), slice(left, left + width))
        image[inside] = values[inside]
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-5)
    assert abs(images[2].mean()) < 0.1 and abs(images[2].std() - 1) < 0.1


def test_nothing_to_erase_leaves_the_images() -> None:
    columns = slice_of(samples_of(TrainTransform(image_size=16, recipe="crop_flip", augment_on="device"), 3))
    images = torch.zeros(3, 3, 16, 16)
    erase(images, Augmentation.of(columns))
    assert not images.any()


@pytest.mark.parametrize(("recipe", "color_jitter"), [("deit", 0.0), ("crop_flip", 0.4)])
def test_the_device_never_waits_for_values(recipe: Any, color_jitter: float) -> None:
    """Tensors without values cannot say how many of them fulfil something, nor be mixed with those of the CPU."""
    transform = TrainTransform(image_size=32, recipe=recipe, color_jitter=color_jitter, augment_on="device")
    columns = slice_of(samples_of(transform, 60))
    augmentation = Augmentation.of(columns).map(lambda x: x.to("meta"))
    images = augment(torch.from_numpy(columns["image"]).to("meta"), augmentation)
    assert images.device.type == "meta" and images.dtype == torch.uint8 and images.shape == (60, 3, 32, 32)
    erase(images.float(), augmentation)
