"""Training and evaluation transforms, against timm's and torchvision's."""

import random
import threading
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tvf
from PIL import Image
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from timm.data.transforms_factory import create_transform
from torchvision.transforms import Compose

from groupvit import transforms
from groupvit.finishing import IMAGENET_MEAN, IMAGENET_STD, normalize, to_tensor, with_erasing
from groupvit.resizing import resize_short_side
from groupvit.transforms import TrainTransform, center_crop
from tests.support.image_files import encoded, png


def picture(height: int, width: int) -> np.ndarray:
    small = np.random.default_rng(height * 1000 + width).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def timm_stages():
    """The paper's transform as timm builds it: crop and flip, RandAugment, tensor and erasing."""
    return create_transform(
        224,
        is_training=True,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bilinear",
        re_prob=0.25,
        re_mode="pixel",
        re_count=1,
        separate=True,
    )


@pytest.mark.parametrize("size", [224, 32, 4])
def test_erase_box_equals_timm_draw_for_draw(timm_stages, size):
    timm_erasing = next(step for step in timm_stages[2].transforms if isinstance(step, RandomErasing))
    num_erased = 0
    for seed in range(1000):
        random.seed(seed)
        erased = timm_erasing(torch.full((3, size, size), 1e9))[0] < 1e8
        top, left, height, width = transforms._erase_box(size, size, random.Random(seed))
        expected = torch.zeros(size, size, dtype=torch.bool)
        expected[top : top + height, left : left + width] = True
        assert torch.equal(erased, expected)
        num_erased += height > 0
    assert 200 < num_erased < 300


def test_the_whole_is_timm_with_the_same_draws(monkeypatch):
    """Crop, flip and erasing in one go; RandAugment is left out, since numpy chooses its operations in timm."""
    pixels = picture(200, 300)
    crop = RandomResizedCropAndInterpolation(64)
    erasing = RandomErasing(0.25, mode="pixel", device="cpu")
    monkeypatch.setattr(transforms, "draw_rand_augment", lambda rng: [])
    for seed in range(40):
        sample = TrainTransform(image_size=64, resize="pillow")(pixels, seed)
        random.seed(seed)
        image = crop(Image.fromarray(pixels))
        expected = tvf.hflip(image) if random.random() < 0.5 else image
        np.testing.assert_array_equal(sample.image, np.asarray(expected).transpose(2, 0, 1))
        tensor = normalize(torch.from_numpy(sample.image))
        before = tensor.clone()
        erased = erasing(tensor) != before
        finished = finish_one(sample)
        assert torch.equal((finished != before).any(0), erased.any(0))


def finish_one(sample: transforms.TrainSample) -> torch.Tensor:
    images = torch.from_numpy(sample.image)[None]
    return with_erasing(images, torch.from_numpy(sample.erase_box)[None], torch.tensor([sample.noise_seed])).finished()[
        0
    ]


@pytest.mark.parametrize("recipe", ["deit", "crop_flip"])
def test_the_sample_of_torch_is_that_of_pillow_within_rounding(recipe):
    pixels = picture(200, 300)
    for seed in range(20):
        ours, timms = (
            TrainTransform(image_size=64, recipe=recipe, resize=resize)(pixels, seed) for resize in ("torch", "pillow")
        )
        assert ours.erase_box.tolist() == timms.erase_box.tolist() and ours.noise_seed == timms.noise_seed
        difference = np.abs(ours.image.astype(int) - timms.image)
        # An operation like Posterize turns a difference of 1 into a large one.
        assert (difference > 2).mean() < 0.005
        assert recipe == "deit" or difference.max() <= 2


@pytest.mark.parametrize("resize", ["torch", "pillow"])
def test_a_sample_is_written_where_it_belongs(resize):
    transform = TrainTransform(image_size=32, resize=resize)
    images = np.zeros((20, 3, 32, 32), np.uint8)
    for seed, out in enumerate(images):
        assert transform(picture(50, 70), seed, out=out).image is out
        np.testing.assert_array_equal(out, transform(picture(50, 70), seed).image)


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_jpeg_is_decoded_only_at_the_size_that_the_crop_needs(monkeypatch, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    data = encoded(Image.fromarray(picture(360, 560)), "JPEG", quality=95, exif=exif)  # turned by a quarter or not
    sizes = []
    decode = transforms.decode_image

    def recorded(*args: Any, **options: Any):
        sizes.append((pixels := decode(*args, **options)).shape[:2])
        return pixels

    monkeypatch.setattr(transforms, "decode_image", recorded)
    for seed in range(30):
        reduced = TrainTransform(image_size=64, recipe="crop_flip")(data, seed)
        whole = TrainTransform(image_size=64, recipe="crop_flip", resize="pillow")(data, seed)
        assert reduced.noise_seed == whole.noise_seed
        # The edges of the crop are rounded: half a pixel of the reduced image is up to 3 of 255 on such slopes.
        assert np.abs(reduced.image.astype(int) - whole.image).mean() < 4
    whole = (360, 560) if orientation == 1 else (560, 360)
    assert set(sizes[1::2]) == {whole}
    assert set(sizes[::2]) == {(whole[0] // divisor, whole[1] // divisor) for divisor in (1, 2, 4)}
    sizes.clear()
    small = encoded(Image.fromarray(picture(100, 127)), "JPEG")
    for seed in range(30):
        TrainTransform(image_size=64)(small, seed)
    assert set(sizes) == {(100, 127)}


@pytest.mark.parametrize("recipe", ["deit", "crop_flip"])
def test_a_sample_depends_on_its_seed_only(recipe):
    transform = TrainTransform(image_size=32, recipe=recipe)
    pixels = picture(50, 70)
    first = transform(pixels, 7)
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # pyright: ignore
    transform(pixels, 8)
    again = transform(pixels, 7)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.erase_box, again.erase_box)
    assert first.noise_seed == again.noise_seed
    finish_one(again)
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]  # pyright: ignore
    assert torch.equal(torch.get_rng_state(), states[2])


def test_threads_do_not_disturb_each_other():
    transform = TrainTransform(image_size=32)
    pixels = picture(50, 70)
    expected = [transform(pixels, seed).image for seed in range(50)]
    results: dict[int, list] = {}

    def work(index):
        results[index] = [transform(pixels, seed).image for seed in range(50)]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    for images in results.values():
        np.testing.assert_array_equal(images, expected)


def test_seeds_give_different_samples():
    transform = TrainTransform(image_size=32, recipe="crop_flip")
    pixels = picture(50, 70)
    seeds = [0, 1, -1, 2**63, 2**64 - 2, np.int64(3)]
    assert len({transform(pixels, seed).image.tobytes() for seed in seeds}) == len(seeds)


def test_a_file_gives_what_its_pixels_give():
    transform = TrainTransform(image_size=32)
    np.testing.assert_array_equal(transform(png(picture(80, 60)), 3).image, transform(picture(80, 60), 3).image)


def test_sample_has_the_stated_shapes():
    sample = TrainTransform(image_size=32)(picture(80, 60), 3)
    assert sample.image.shape == (3, 32, 32) and sample.image.dtype == np.uint8
    assert sample.image.flags.c_contiguous
    assert sample.erase_box.shape == (4,) and sample.erase_box.dtype == np.int16
    assert 0 <= sample.noise_seed < 2**63


def test_crop_flip_erases_nothing_and_only_crops_and_flips():
    pixels = picture(40, 40)
    transform = TrainTransform(image_size=40, recipe="crop_flip", crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    seen = set()
    for seed in range(20):
        sample = transform(pixels, seed)
        assert not sample.erase_box.any()
        seen.add(sample.image.tobytes())
    straight = pixels.transpose(2, 0, 1)
    assert seen == {straight.tobytes(), np.ascontiguousarray(straight[:, :, ::-1]).tobytes()}


def test_finishing_normalises_and_fills_boxes_with_standard_normal_noise():
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[0, 0, 0, 0], [4, 8, 50, 40], [4, 8, 50, 40]], dtype=torch.int16)
    seeds = torch.tensor([5, 6, 7])
    output = with_erasing(images, boxes, seeds).finished()
    assert output.dtype == torch.float32 and output.shape == images.shape
    plain = tvf.normalize(images.float() / 255, list(IMAGENET_MEAN), list(IMAGENET_STD))
    torch.testing.assert_close(output[0], plain[0], rtol=0, atol=1e-6)
    noise = output[1, :, 4:54, 8:48]
    assert abs(noise.mean().item()) < 0.06 and abs(noise.std().item() - 1) < 0.06
    outside = torch.ones(64, 64, dtype=torch.bool)
    outside[4:54, 8:48] = False
    torch.testing.assert_close(output[1:, :, outside], plain[1:, :, outside], rtol=0, atol=1e-6)
    assert not torch.equal(output[1, :, 4:54, 8:48], output[2, :, 4:54, 8:48])
    # Noise belongs to the sample, not to its place in the batch.
    torch.testing.assert_close(with_erasing(images[1:], boxes[1:], seeds[1:]).finished(), output[1:], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"recipe": "diet"}, "recipe: 'diet' is unknown; use one of deit, crop_flip"),
        ({"resize": "cv2"}, "resize: 'cv2' is unknown; use one of pillow, torch"),
        ({"crop_scale": (0.5, 0.1)}, "crop_scale"),
        ({"crop_ratio": (0.0, 1.0)}, "crop_ratio"),
        ({"image_size": 0}, "image_size"),
    ],
)
def test_bad_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        TrainTransform(**{"image_size": 32, **arguments})


def test_a_corrupt_image_is_refused():
    with pytest.raises(ValueError, match="cannot be decoded"):
        TrainTransform(image_size=32)(b"no image", 0)


@pytest.mark.parametrize(
    ("shape", "expected"), [((375, 500), (448, 597)), ((500, 375), (597, 448)), ((100, 1000), (205, 2048))]
)
def test_resize_keeps_proportions_within_bounds(shape, expected):
    assert resize_short_side(picture(*shape), 448).shape == (*expected, 3)


def test_resize_to_a_multiple_of_the_patch_size():
    assert resize_short_side(picture(375, 500), 448, multiple_of=16).shape == (448, 592, 3)
    assert resize_short_side(picture(2, 500), 16, multiple_of=16, max_long_side=160).shape == (16, 160, 3)


def test_center_crop_equals_timms_evaluation_transform():
    reference = create_transform(224, is_training=False, interpolation="bicubic", crop_pct=0.875)
    assert isinstance(reference, Compose)
    for shape in [(375, 500), (300, 256), (64, 80)]:
        actual = to_tensor(center_crop(picture(*shape), 224))
        torch.testing.assert_close(actual, reference(Image.fromarray(picture(*shape))), rtol=0, atol=0.05)


def test_colour_jitter_changes_colours_within_its_share():
    gray = np.full((32, 32, 3), 100, np.uint8)
    values = {
        int(TrainTransform(image_size=8, recipe="crop_flip", color_jitter=0.2)(gray, seed).image[0, 0, 0])
        for seed in range(200)
    }
    assert 80 <= min(values) < 85 and 115 < max(values) <= 120
    with pytest.raises(ValueError, match="color_jitter"):
        TrainTransform(image_size=8, color_jitter=1.5)


def test_resizing_without_averaging_is_opencvs_bilinear() -> None:
    blocks = picture(300, 431)
    for short_side in (448, 128):
        ours = resize_short_side(blocks, short_side, antialias=False)
        theirs = cv2.resize(blocks, (ours.shape[1], ours.shape[0]), interpolation=cv2.INTER_LINEAR)
        assert np.abs(ours.astype(int) - theirs).max() <= 1  # OpenCV rounds its weights to 11 bits
    assert not np.array_equal(ours, resize_short_side(blocks, 128))


def test_training_sees_a_picture_as_everyone_does():
    """Upright, on white, in 8 bits: raw shards hold files as they came, and curated ones were decoded by the same."""
    grey = Image.fromarray(np.linspace(0, 65535, 40 * 30).reshape(30, 40).astype(np.uint16))
    clear = Image.new("RGBA", (40, 30), (200, 0, 0, 0))
    exif = Image.Exif()
    exif[274] = 6
    lying = Image.fromarray(np.arange(40, dtype=np.uint8).repeat(3 * 30).reshape(40, 30, 3))
    turned = np.asarray(lying.transpose(Image.Transpose.ROTATE_270))
    transform = TrainTransform(image_size=16, recipe="crop_flip")
    for data, pixels in (
        (encoded(grey, "PNG"), np.stack([np.asarray(grey) >> 8] * 3, axis=-1).astype(np.uint8)),
        (encoded(clear, "PNG"), np.full((30, 40, 3), 255, np.uint8)),
        (encoded(lying, "PNG", exif=exif), turned),
    ):
        np.testing.assert_array_equal(transform(data, 3).image, transform(pixels, 3).image)
