"""Mask refinement against the formula written out pixel by pixel."""

import numpy as np
import torch

from groupvit.pamr import DILATIONS, refined


def refined_by_hand(image: np.ndarray, masks: np.ndarray, num_iterations: int) -> np.ndarray:
    """As the paper's formula, with loops: image [3, H, W], masks [K, H, W]."""
    _, height, width = image.shape
    steps = [(y * d, x * d) for d in DILATIONS for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x]
    weights = np.zeros((len(steps), height, width))
    for y in range(height):
        for x in range(width):
            ys = [min(max(y + dy, 0), height - 1) for dy, _ in steps]
            xs = [min(max(x + dx, 0), width - 1) for _, dx in steps]
            around = image[:, ys, xs]
            own = np.repeat(image[:, y, x, None], len(DILATIONS), axis=1)
            deviation = np.concatenate([around, own], axis=1).std(axis=1, ddof=1)
            alike = -np.abs(around - image[:, y, x, None]) / (0.1 * deviation[:, None] + 1e-8)
            exponent = np.exp(alike.mean(axis=0) - alike.mean(axis=0).max())
            weights[:, y, x] = exponent / exponent.sum()
    for _ in range(num_iterations):
        before = masks.copy()
        for y in range(height):
            for x in range(width):
                ys = [min(max(y + dy, 0), height - 1) for dy, _ in steps]
                xs = [min(max(x + dx, 0), width - 1) for _, dx in steps]
                masks[:, y, x] = before[:, ys, xs] @ weights[:, y, x]
    return masks


def test_equal_to_the_formula() -> None:
    rng = np.random.default_rng(0)
    image, masks = rng.normal(size=(3, 9, 11)), rng.random((2, 9, 11))
    ours = refined(torch.tensor(image), torch.tensor(masks), 2)
    np.testing.assert_allclose(ours.numpy(), refined_by_hand(image, masks.copy(), 2), atol=1e-9)


def test_masks_come_to_follow_the_edges_of_the_image() -> None:
    image = torch.zeros(3, 60, 60)
    image[:, :, 30:] = 1.0
    image += 0.01 * torch.randn(3, 60, 60, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 60, 60)
    mask[:, :, 26:] = 1.0  # four columns too many
    after = refined(image, torch.cat([mask, 1 - mask]), 10)
    torch.testing.assert_close(after.sum(dim=0), torch.ones(60, 60))
    labels = after[0] > 0.5
    assert int(labels[:, :30].sum()) < int(0.1 * 4 * 60) and bool(labels[:, 30:].all())
