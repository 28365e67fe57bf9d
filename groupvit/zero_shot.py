"""Embeds classes given as words, and classifies embeddings by them."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from groupvit.model import GroupViT, clamped_scale
from groupvit.tokenizer import Tokenize

TEXTS_PER_BATCH = 256


@torch.inference_mode()
def class_embeddings(
    model: GroupViT,
    tokenize: Tokenize,
    classes: Sequence[str | tuple[str, ...]],
    templates: Sequence[str] = ("a photo of a {}.",),
) -> Tensor:
    """Embed each class: the mean of its projected text embeddings over templates, which is then L2-normalised.

    The embeddings are *not* normalised before the mean, as in the evaluation of the released models. CLIP does so.

    Args:
        model: The model.
        tokenize: Converts texts to token ids.
        classes: A word per class, or several synonyms: then the mean is over all of them with all templates.
        templates: Texts with one `{}` each, for the word.

    Returns:
        float32 [num_classes, D] of unit length, on the model's device.

    Raises:
        ValueError: A list is empty, a template does not have one `{}`, or an embedding is not finite.
    """
    words = [(entry,) if isinstance(entry, str) else entry for entry in classes]
    if not words or not all(words) or not templates:
        raise ValueError(f"{len(words)} classes and {len(templates)} templates given: at least one of each is needed")
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(f"prompt template {template!r} must hold {{}} once, where the class name goes")
    texts = [template.format(word) for synonyms in words for word in synonyms for template in templates]
    token_ids = torch.from_numpy(tokenize(texts, model.config.text.context_length).astype(np.int64))
    return mean_embeddings(model, token_ids, [len(synonyms) * len(templates) for synonyms in words], classes)


@torch.inference_mode()
def mean_embeddings(
    model: GroupViT, token_ids: Tensor, texts_per_class: Sequence[int], names: Sequence[object]
) -> Tensor:
    """Embed texts as token ids int64 [N, T], and take the mean of each class's: float32 [num_classes, D], as
    `class_embeddings`. `names`: one per class, for the ValueError if an embedding is not finite."""
    device = model.logit_scale.device
    embedded = torch.cat([model.encode_text(part.to(device)) for part in token_ids.split(TEXTS_PER_BATCH)]).float()
    means = torch.stack([part.mean(dim=0) for part in embedded.split(list(texts_per_class))])
    finite = _has_length(means).flatten()
    if not finite.all():
        raise ValueError(
            f"the embedding of class {names[int(finite.int().argmin())]!r} is not finite: use another checkpoint"
        )
    return F.normalize(means, dim=-1)


def classify(image_embeddings: Tensor, class_embeddings: Tensor, logit_scale: Tensor) -> Tensor:
    """Compute logits [..., C], scaled cosine similarities, of embeddings [..., D] and unit class embeddings [C, D].

    logit_scale: 0-D, in log space; its exp is limited to 100, as in training. ValueError if a logit is not finite, or
    if the length of an embedding overflows float32, which would make it equally similar to all classes.
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
    """Whether the length of each embedding [..., D] is finite: [..., 1]."""
    return embeddings.float().norm(dim=-1, keepdim=True).isfinite()
