"""Classes given as words: their embeddings, and classification of whole images by them."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from groupvit.losses import clamped_scale
from groupvit.model import GroupViT

TEXTS_PER_BATCH = 256

Tokenize = Callable[[Sequence[str], int], NDArray[np.int32]]
"""(texts, context length) → token ids int32 [N, T]; `groupvit.tokenizer.Tokenizer` is one."""


@torch.inference_mode()
def class_embeddings(
    model: GroupViT,
    tokenize: Tokenize,
    classes: Sequence[str | tuple[str, ...]],
    templates: Sequence[str] = ("a photo of a {}.",),
) -> Tensor:
    """Embeds each class as the mean over templates of its projected texts, taken before normalising, then L2.

    A class is a word, or several for the same thing: then the mean is over all of them, each with all templates.

    Returns float32 [num_classes, D] of unit length on the model's device. The mean of *un-normalised* embeddings is
    what the released models were evaluated with; CLIP normalises before the mean. Raises ValueError for empty lists,
    for a template without `{}`, and for an embedding that is not finite.
    """
    words = [(entry,) if isinstance(entry, str) else entry for entry in classes]
    if not words or not all(words) or not templates:
        raise ValueError(f"{len(words)} classes and {len(templates)} templates given: at least one of each is needed")
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(f"prompt template {template!r} must hold {{}} once, where the class name goes")
    texts = [template.format(word) for synonyms in words for word in synonyms for template in templates]
    token_ids = torch.from_numpy(tokenize(texts, model.config.text.context_length).astype(np.int64))
    device = model.logit_scale.device
    embedded = torch.cat([model.encode_text(part.to(device)) for part in token_ids.split(TEXTS_PER_BATCH)]).float()
    texts_per_class = [len(synonyms) * len(templates) for synonyms in words]
    means = torch.stack([part.mean(dim=0) for part in embedded.split(texts_per_class)])
    finite = _has_length(means).flatten()
    if not finite.all():
        raise ValueError(
            f"the embedding of class {classes[int(finite.int().argmin())]!r} is not finite: use another checkpoint"
        )
    return F.normalize(means, dim=-1)


def classify(image_embeddings: Tensor, class_embeddings: Tensor, logit_scale: Tensor) -> Tensor:
    """Logits [..., C] of embeddings [..., D] of any length, for unit class embeddings [C, D]: scaled cosine similarity.

    logit_scale: 0-D, log space, capped at 100 as in training. ValueError for a logit that is not finite, and for an
    embedding too long for float32, which would be equally similar to all classes.
    """
    logits = clamped_scale(logit_scale) * F.normalize(image_embeddings.float(), dim=-1) @ class_embeddings.T
    finite = logits.isfinite() & _has_length(image_embeddings)
    if not finite.all():
        raise ValueError(
            f"{logits.numel() - int(finite.sum())} of {logits.numel()} scores are not finite, the first of class "
            f"number {int((~finite).nonzero()[0, -1])}: use another checkpoint"
        )
    return logits


def _has_length(embeddings: Tensor) -> Tensor:
    """Whether the length of each embedding [..., D] is a finite number: [..., 1]."""
    return embeddings.float().norm(dim=-1, keepdim=True).isfinite()
