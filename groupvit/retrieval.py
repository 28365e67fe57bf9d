"""Ranks of images and captions by the similarity of their embeddings."""

import numpy as np
from numpy.typing import NDArray

_ROWS_AT_ONCE = 256
_DECIMALS = 6
"""Similarities are compared with this precision, so that rounding does not decide between equal embeddings."""


def caption_ranks(
    image_embeddings: NDArray[np.float32], caption_embeddings: NDArray[np.float32], image_of_caption: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rank the best own caption of each image, and the image of each caption.

    Args:
        image_embeddings: float32 [N, D] of unit length.
        caption_embeddings: float32 [M, D] of unit length.
        image_of_caption: int64 [M], index of the image of each caption. Each image has at least one.

    Returns:
        int64 [N] and int64 [M], counted from 0. A foreign caption or image that is equally similar ranks before the own
        one, so a model that gives everything the same embedding finds nothing.
    """
    num_images = len(image_embeddings)
    images, captions = image_embeddings.astype(np.float64), caption_embeddings.astype(np.float64)
    own = np.einsum("md,md->m", captions, images[image_of_caption]).round(_DECIMALS)
    best_own = np.full(num_images, -np.inf)
    np.maximum.at(best_own, image_of_caption, own)
    of_images = np.zeros(num_images, dtype=np.int64)
    of_captions = np.empty(len(captions), dtype=np.int64)
    for start in range(0, len(captions), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        similarity = (captions[rows] @ images.T).round(_DECIMALS)
        similarity[np.arange(len(similarity)), image_of_caption[rows]] = -np.inf
        of_captions[rows] = (similarity >= own[rows, None]).sum(axis=1)
        of_images += (similarity >= best_own).sum(axis=0)
    return of_images, of_captions
