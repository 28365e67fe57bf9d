"""Ranks against torchmetrics' hit rates, and of models that tell nothing apart."""

import numpy as np
import pytest
import torch
from torchmetrics.retrieval import RetrievalHitRate

from groupvit.retrieval import caption_ranks


def unit(rng: np.random.Generator, count: int) -> np.ndarray:
    values = rng.standard_normal((count, 8)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


@pytest.mark.parametrize("top_k", [1, 5])
def test_recalls_are_torchmetrics_hit_rates(top_k: int) -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 6, 200)
    image_of_caption = np.repeat(np.arange(200), counts)
    images = unit(rng, 200)
    captions = images[image_of_caption] + 1.2 * unit(rng, len(image_of_caption))
    captions = (captions / np.linalg.norm(captions, axis=1, keepdims=True)).astype(np.float32)
    of_images, of_captions = caption_ranks(images, captions, image_of_caption)

    similarity = torch.from_numpy(images @ captions.T)
    own = torch.from_numpy(np.arange(200)[:, None] == image_of_caption)
    for ranks, scores, target in ((of_images, similarity, own), (of_captions, similarity.T, own.T)):
        queries = torch.arange(len(scores))[:, None].expand_as(scores)
        expected = RetrievalHitRate(top_k=top_k)(scores.flatten(), target.flatten(), indexes=queries.flatten())
        assert 0.05 < expected < 0.95
        assert np.mean(ranks < top_k) == pytest.approx(float(expected))


def test_equal_embeddings_find_nothing() -> None:
    rng = np.random.default_rng(0)
    image_of_caption = np.repeat(np.arange(300), 2)
    same = unit(rng, 1)
    of_images, of_captions = caption_ranks(same.repeat(300, axis=0), same.repeat(600, axis=0), image_of_caption)
    assert set(of_images) == {598} and set(of_captions) == {299}
