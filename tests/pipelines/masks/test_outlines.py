"""Outlines of masks: polygons whose pixels are the mask's, and rings as GeoJSON asks for them."""

import numpy as np
import pytest

from pipelines.masks.outlines import Ring, outline
from tests.support.drawn_masks import drawn_mask
from tests.support.rings import filled


def signed_area(ring: Ring) -> float:
    x, y = np.array(ring, dtype=float).T
    return float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) / 2)


def check(mask: np.ndarray) -> list[list[Ring]]:
    """The polygons have the mask's pixels; no ring visits a corner twice or has a corner on a straight line."""
    polygons = outline(mask)
    together = np.zeros(mask.shape, dtype=int)
    for rings in polygons:
        together += filled(rings, *mask.shape)
        assert [signed_area(ring) > 0 for ring in rings] == [True] + [False] * (len(rings) - 1)
        for ring in rings:
            assert ring[0] == ring[-1] and len(set(ring[:-1])) == len(ring) - 1
            steps = np.diff(np.array([*ring, ring[1]]), axis=0)
            assert ((steps[:-1] * steps[1:]).sum(axis=1) == 0).all(), "every corner turns"
    np.testing.assert_array_equal(together, mask)
    return polygons


@pytest.mark.parametrize("name", ["ellipse", "stripes", "all", "none", "corner", "wide"])
def test_drawn_masks_keep_their_pixels(name: str) -> None:
    check(drawn_mask(name))


@pytest.mark.parametrize("share", [0.1, 0.4, 0.5, 0.6, 0.9])
def test_random_masks_keep_their_pixels(share: float) -> None:
    rng = np.random.default_rng(0)
    for height, width in ((1, 1), (1, 9), (9, 1), (5, 5), (7, 12), (40, 30)):
        for _ in range(5):
            check(rng.random((height, width)) < share)


def test_a_square_is_one_ring_of_four_corners() -> None:
    mask = np.zeros((4, 5), dtype=bool)
    mask[1:3, 2:5] = True
    [[ring]] = check(mask)
    assert sorted(ring[:-1]) == [(2, 1), (2, 3), (5, 1), (5, 3)]


def test_pixels_that_touch_in_a_corner_are_two_polygons() -> None:
    assert len(check(np.eye(2, dtype=bool))) == 2


def test_holes_that_touch_in_a_corner_are_two_rings_of_one_polygon() -> None:
    mask = np.ones((4, 4), dtype=bool)
    mask[1, 1] = mask[2, 2] = False
    [rings] = check(mask)
    assert len(rings) == 3


def test_holes_that_touch_the_outside_in_a_corner_are_holes() -> None:
    mask = np.array([[1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 0, 1], [1, 1, 1, 1]], dtype=bool)
    [rings] = check(mask)
    assert len(rings) == 3


def test_an_island_in_a_hole_is_a_polygon_of_its_own() -> None:
    mask = np.ones((7, 7), dtype=bool)
    mask[1:6, 1:6] = False
    mask[3, 3] = True
    assert sorted(len(rings) for rings in check(mask)) == [1, 2]
