"""Pictures hold the right colours in the right places; how they look is judged by eye."""

import numpy as np
import pytest
from PIL import Image

from groupvit.visualize import (
    CELL,
    GAP,
    Example,
    confusion_picture,
    group_picture,
    label_palette,
    overlay,
    page,
    palette,
)


def colours_of(picture: Image.Image) -> set[tuple[int, ...]]:
    return {tuple(int(v) for v in colour) for colour in np.unique(np.asarray(picture).reshape(-1, 3), axis=0)}


def example(side: int = 32, with_truth: bool = True, num_stages: int = 1) -> Example:
    rng = np.random.default_rng(0)
    labels = np.zeros((side, side), dtype=np.uint8)
    labels[side // 4 : side // 2, side // 4 : side // 2] = 2
    return Example(
        title="a scene",
        image=rng.integers(0, 255, (side, side, 3), dtype=np.uint8),
        prediction=labels,
        truth=np.roll(labels, 3, axis=1) if with_truth else None,
        group_maps=[rng.random((4, 8, 8)) for _ in range(num_stages)],
    )


def test_palette_colours_differ() -> None:
    colours = palette(60).astype(int)
    apart = np.abs(colours[:, None] - colours[None]).sum(axis=-1) + 1000 * np.eye(60, dtype=int)
    assert apart.min() > 12
    assert apart[:20, :20].min() > 60


def test_label_palette_keeps_background_and_ignored_grey() -> None:
    with_background, without = label_palette(5, True), label_palette(5, False)
    assert with_background.shape == (256, 3)
    assert np.ptp(with_background[0].astype(int)) < 20 and np.ptp(with_background[255].astype(int)) < 20
    np.testing.assert_array_equal(with_background[1:5], without[0:4])


def test_overlay_tints_labels_and_dims_the_background() -> None:
    image = np.full((20, 20, 3), 128, dtype=np.uint8)
    labels = np.zeros((20, 20), dtype=np.uint8)
    labels[:, 10:] = 1
    drawn = np.asarray(overlay(image, labels, label_palette(2, True), True)).astype(int)
    assert np.ptp(drawn[5, 2]) < 5 and drawn[5, 2].max() < 128
    assert drawn[5, 15, 0] > drawn[5, 15, 1] + 40, "class 1 is red"
    assert drawn[5, 10].min() > 190, "a line divides the labels"


def test_group_picture_gives_the_largest_group_the_first_colour() -> None:
    group_map = np.zeros((3, 4, 4))
    group_map[2] = 0.5
    group_map[0, 0, 0] = 1.0
    drawn = np.asarray(group_picture(np.full((32, 32, 3), 128, dtype=np.uint8), group_map)).astype(int)
    assert drawn[28, 28, 0] > drawn[28, 28, 1] + 40 and drawn[1, 1, 1] > drawn[1, 1, 0] + 40


def test_page_has_a_column_for_each_picture_and_a_legend() -> None:
    names = ["background", "dog", "cat"]
    full = page([example(num_stages=2), example(num_stages=2)], names, has_background=True, heading="validation")
    assert full.width == GAP + 5 * (CELL + GAP)
    legend = np.asarray(full.crop((0, full.height - 40, full.width, full.height)))
    assert tuple(label_palette(3, True)[2]) in colours_of(Image.fromarray(legend)), "the class that is shown"
    assert tuple(label_palette(3, True)[1]) not in colours_of(Image.fromarray(legend)), "the class that is not"
    single = page([example(with_truth=False, num_stages=0)], names, has_background=True)
    assert single.width == GAP + 2 * (CELL + GAP)


def test_page_of_images_of_several_shapes_and_of_a_long_legend() -> None:
    wide = Example(
        title="x" * 500,
        image=np.zeros((10, 200, 3), np.uint8),
        prediction=np.arange(2000, dtype=np.uint32).reshape(10, 200).astype(np.uint8) % 60,
    )
    drawn = page([wide, example(num_stages=0)], [f"class number {i}" for i in range(60)], has_background=False)
    assert drawn.height > 500


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        page([], ["a"], has_background=False)


@pytest.mark.parametrize("num_classes", [2, 13, 60])
def test_confusion_picture_is_darkest_on_a_perfect_diagonal(num_classes: int) -> None:
    picture = confusion_picture(np.eye(num_classes, dtype=np.int64) * 5, [f"class {i}" for i in range(num_classes)])
    cell = 44 if num_classes <= 24 else 16
    corner = picture.width - GAP - num_classes * cell  # where the cells begin
    pixels = np.asarray(picture).astype(int)
    on, off = pixels[corner + 3, corner + 3], pixels[corner + 3, corner + cell + 3]
    assert on.sum() + 200 < off.sum()


def test_confusion_picture_survives_a_class_without_pixels() -> None:
    confusion_picture(np.zeros((3, 3), dtype=np.int64), ["a", "b", "c"])
