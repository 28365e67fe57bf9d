"""Scenes are what they say they are: masks match the pixels, captions name the objects, edges have no halo."""

import numpy as np
import pytest

from pipelines.demo.compose import Background, compose, make_cutout

RED, GREEN = (220, 30, 30), (30, 200, 60)


def _disc(colour: tuple[int, int, int], hidden: int = 255) -> np.ndarray:
    """uint8 [64, 64, 4]: a disc of the colour; the pixels that alpha hides have the value `hidden`."""
    y, x = np.mgrid[:64, :64] - 31.5
    alpha = np.where(np.hypot(x, y) < 28, 255, 0).astype(np.uint8)
    pixels = np.full((64, 64, 3), hidden, np.uint8)
    pixels[alpha > 0] = colour
    return np.dstack([pixels, alpha])


def _scene(seed: int, *, side: int = 96):
    cutouts = {"apple": [make_cutout("apple", _disc(RED))], "pear": [make_cutout("pear", _disc(GREEN))]}
    background = Background(image=np.zeros((120, 160, 3), np.uint8), phrase="in the dark", nouns=("dark",))
    rng = np.random.default_rng(seed)
    return compose(cutouts, [background], {"apple": 1}, side=side, rng=rng)


def test_mask_marks_exactly_the_pixels_of_its_class() -> None:
    for seed in range(20):
        scene = _scene(seed)
        reddish = (scene.image[..., 0] > 90) & (scene.image[..., 1] < 90)
        disagree = np.count_nonzero(reddish != (scene.mask == 1))
        assert disagree <= 0.03 * scene.mask.size


def test_noun_without_class_is_background_in_the_mask_but_named() -> None:
    scenes = [_scene(seed) for seed in range(20)]
    alone = [scene for scene in scenes if "apple" not in scene.nouns]
    assert alone
    for scene in alone:
        assert scene.mask.max() == 0
        assert "pear" in scene.caption and scene.image.max() > 100


def test_hidden_colour_of_a_cutout_does_not_bleed_into_the_edges() -> None:
    """On black, a red disc whose transparent pixels are white must have no edge brighter in green than the disc."""
    for seed in range(10):
        scene = _scene(seed)
        if "pear" not in scene.nouns:
            assert scene.image[..., 1].max() < 90


def test_every_noun_is_a_word_of_the_caption_and_in_its_order() -> None:
    for seed in range(30):
        scene = _scene(seed)
        words = scene.caption.replace(",", "").split()
        assert [word for word in words if word in ("apple", "pear")] == list(scene.nouns[:-1])
        assert scene.nouns[-1] == "dark" and "dark" in words


def test_same_generator_same_scene() -> None:
    first, second, other = _scene(5), _scene(5), _scene(6)
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.mask, second.mask)
    assert first.caption == second.caption
    assert not np.array_equal(first.image, other.image)


def test_invisible_cutout_is_refused() -> None:
    with pytest.raises(ValueError, match="fully transparent"):
        make_cutout("ghost", np.zeros((8, 8, 4), np.uint8))
