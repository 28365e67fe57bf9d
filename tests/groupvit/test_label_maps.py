"""Label maps against a computation that holds every class for every pixel."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from groupvit import label_maps
from groupvit.config import Precision, SegmentationConfig
from groupvit.finishing import to_tensor
from groupvit.group_quality import oracle
from groupvit.model import GroupViT
from groupvit.resizing import resize_short_side, windows
from groupvit.segmentation import Words, label, segment_logits
from groupvit.windows import encode_views
from tests.support.small_model import SMALL, enlarge, small_model

NUM_CLASSES = 7
ODD = SegmentationConfig(short_side=53, max_long_side=90, window=32, stride=20, top_classes=3)
THRESHOLDS = (0.02, 0.25, None)


@pytest.fixture(scope="module")
def model() -> GroupViT:
    model = small_model().eval()
    enlarge(model.image_encoder.parameters())
    return model


@pytest.fixture(scope="module")
def classes() -> Tensor:
    return F.normalize(torch.randn(NUM_CLASSES, 16, generator=torch.Generator().manual_seed(1)), dim=-1)


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    blocks = np.random.default_rng(seed).integers(0, 255, (height // 9 + 1, width // 9 + 1, 3), dtype=np.uint8)
    return np.ascontiguousarray(blocks.repeat(9, axis=0).repeat(9, axis=1)[:height, :width])


def by_brute_force(
    model: GroupViT, image: np.ndarray, classes: Tensor, config: SegmentationConfig, threshold: float | None
) -> np.ndarray:
    """The protocol as it reads: each window on its own, all classes at every pixel, mean, bilinear, arg max."""
    size = image.shape[:2]
    total = torch.zeros(NUM_CLASSES + (threshold is not None), *size)
    for scale in config.scales:
        short = round(scale * (config.short_side or min(size)))
        resized = resize_short_side(image, short, max_long_side=round(scale * config.max_long_side), antialias=False)
        for mirrored in (False, True) if config.flip else (False,):
            pixels = to_tensor(resized[:, ::-1] if mirrored else resized)[None]
            scores, times = torch.zeros(len(total), *pixels.shape[-2:]), torch.zeros(pixels.shape[-2:])
            for top, bottom, left, right in windows(pixels.shape[-2], pixels.shape[-1], config.window, config.stride):
                part = pixels[..., top:bottom, left:right]
                scores[:, top:bottom, left:right] += segment_logits(model, part, classes, threshold, config=config)
                times[top:bottom, left:right] += 1
            average = scores / times
            average = average.flip(-1) if mirrored else average
            total += F.interpolate(average[None], size=size, mode="bilinear", align_corners=False)[0]
    return total.argmax(dim=0).numpy()


@pytest.mark.parametrize("shape", [(75, 131), (41, 37), (200, 120)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"masks": "soft"},
        {"scales": (1.0, 1.3), "flip": True},
        {"top_classes": None, "background_rule": "constant"},
        {"grouping": False, "top_classes": None},
        {"pamr_iterations": 2},
    ],
)
def test_equal_to_brute_force_at_odd_sizes(
    model: GroupViT, classes: Tensor, shape: tuple[int, int], options: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_maps, "STRIP_NUMBERS", 9 * 1500)  # many strips, some of a few rows
    config, image = replace(ODD, **options), photo(*shape)
    [views] = encode_views(model, [image], config)
    maps = label(views, Words.of(model, classes, None, config), shape, config, THRESHOLDS)
    for threshold, labels in zip(THRESHOLDS, maps, strict=True):
        assert labels.shape == shape and labels.dtype == np.uint8
        expected = by_brute_force(model, image, classes, config, threshold)
        assert (labels == expected).mean() > 0.9995, "but for ties in rounding"
    assert len(np.unique(maps[-1])) > 1


def test_many_classes_are_not_held_at_every_pixel(model: GroupViT, monkeypatch: pytest.MonkeyPatch) -> None:
    """2,000 classes at 200 x 320 pixels would be 512 MB; the scores of a strip or of an edge are some MB."""
    monkeypatch.setattr(label_maps, "STRIP_NUMBERS", 2**21)
    monkeypatch.setattr(label_maps, "EDGE_PIXELS_AT_ONCE", 2**12)
    many = F.normalize(torch.randn(2000, 16, generator=torch.Generator().manual_seed(2)), dim=-1)
    image, config = photo(200, 320), replace(ODD, short_side=32, window=None, top_classes=None)
    largest = 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                largest = max(largest, result.numel())
            return result

    [views] = encode_views(model, [image], config)
    words = Words.of(model, many, None, config)
    with Watch():
        [labels] = label(views, words, (200, 320), config, (None,))
        soft = replace(config, masks="soft")
        label(views, words, (200, 320), soft, (None,))
    assert labels.shape == (200, 320)
    assert 0 < largest <= 4 * max(label_maps.STRIP_NUMBERS, 2000 * label_maps.EDGE_PIXELS_AT_ONCE) < 2000 * 200 * 320


@pytest.mark.parametrize("stem", ["patch", "convolutional"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_windows_are_the_same_in_any_company(model: GroupViT, stem: str, precision: Precision) -> None:
    """Bit by bit, so that a confusion matrix depends neither on the batch size nor on how images are dealt out."""
    if stem == "convolutional":
        model = small_model(replace(SMALL, image=replace(SMALL.image, stem="convolutional"))).eval()
    images = [photo(75, 131, 1), photo(60, 60, 2), photo(75, 131, 3), photo(131, 75, 4)]
    for config in (ODD, replace(ODD, grouping=False), replace(ODD, scales=(1.0, 1.3), flip=True)):
        alone = [encode_views(model, [image], config, precision=precision)[0] for image in images]
        assert sum(len(view.windows) for views in alone for view in views) > 30
        for size in (1, 8, None):
            together = encode_views(model, images, config, batch_size=size, precision=precision)
            for views, expected in zip(together, alone, strict=True):
                for view, expected_view in zip(views, expected, strict=True):
                    assert len(view.windows) == len(expected_view.windows)
                    for window, same in zip(view.windows, expected_view.windows, strict=True):
                        assert window.box == same.box
                        assert torch.equal(window.segments, same.segments)
                        assert torch.equal(window.embedding, same.embedding)
                        assert all(map(torch.equal, window.group_maps, same.group_maps))


def test_bfloat16_changes_little(model: GroupViT, classes: Tensor) -> None:
    image = photo(75, 131)
    [views], [fast] = (encode_views(model, [image], ODD, precision=precision) for precision in ("float32", "bfloat16"))
    words = Words.of(model, classes, None, ODD)
    labels, of_fast = (label(found, words, (75, 131), ODD, (None,))[0] for found in (views, fast))
    assert fast[0].windows[0].segments.dtype == torch.float32
    assert not torch.equal(fast[0].windows[0].segments, views[0].windows[0].segments)
    assert (labels == of_fast).mean() > 0.8


def test_the_oracle_finds_masks_that_the_groups_have(model: GroupViT) -> None:
    image, config = photo(64, 96), replace(ODD, short_side=64, window=None)
    [[view]] = encode_views(model, [image], config)
    groups = label_maps.pixel_groups(view.windows[0]).numpy()
    truth = np.array([3, 1, 0, 2])[groups].astype(np.uint8)
    np.testing.assert_array_equal(oracle(view, truth, 4), truth)
    worse = truth.copy()
    worse[:, ::2] = 1
    assert 0.2 < (oracle(view, worse, 4) == worse).mean() < 1


def test_the_first_of_equal_groups_has_the_pixel() -> None:
    maps = torch.randint(0, 3, (5, 40, 60), generator=torch.Generator().manual_seed(0)).float()
    assert torch.equal(label_maps.best_groups(maps), maps.argmax(dim=0))
