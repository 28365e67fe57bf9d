"""The contrastive losses (paper section 3.2, released numbers where they differ from its equations).

These functions normalise the embeddings. Some rows of a global batch are compared with all of it, so the mean over
equally large parts is the loss of the global batch. `contrastive_losses` gets the parts from a training step. The
other functions gather the embeddings of all workers with gradient: the process group is an argument, and None means a
single worker.

Memory is that of the logits, local batch x global batch (x prompts): there are no label tensors as large. No shape
depends on the values of keys, so on a GPU the host waits for nothing.

Shapes: B own images, W times as many in the global batch, K prompts per image, G segments, D channels.
"""

import itertools

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from groupvit.collectives import Gathered, gather
from groupvit.config import LossConfig
from groupvit.model import clamped_scale
from groupvit.precision import at_least_float32

FULL_WEIGHT_MASS = 0.05
"""Share of the image from which a segment has full weight, so that small objects count as much as large backgrounds."""


def contrastive_losses(
    images: Gathered,
    texts: Gathered,
    logit_scale: Tensor,
    multi_label_logit_scale: Tensor,
    config: LossConfig,
    *,
    segment_masses: Gathered | None = None,
    prompt_keys: Gathered | None = None,
) -> dict[str, Tensor]:
    """The losses of a training step for the own rows, beside those of the whole global batch.

    Args:
        images: [B,1,D] float32: the image embeddings. [B,1+G,D] with `config.looks_at_segments`: then those of the
            segments.
        texts: [B,1+K,D] float32: the embeddings of captions, then of prompts.
        logit_scale: 0-D, in log space, of the image-text contrastive loss.
        multi_label_logit_scale: 0-D, in log space, of the multi-label contrastive loss.
        config: Which losses, and their weights.
        segment_masses: [B,G] float32, for the mixture.
        prompt_keys: [B,K] int64, with `config.shares_positives`.

    Returns:
        0-D float32: `loss`, the weighted sum, and its parts `image_text_loss` and, with prompts, `multi_label_loss`.
    """
    first_images, captions = images.map(_first_row), texts.map(_first_row)
    image_text = _image_text(first_images, captions, logit_scale)
    if config.num_prompts == 0:
        return {"loss": image_text, "image_text_loss": image_text}
    prompts, scale = texts.map(_later_rows), multi_label_logit_scale
    assert not config.shares_positives or prompt_keys is not None, "this loss needs the keys of the prompts"
    if config.multi_label_match == "mixture":
        assert prompt_keys is not None and segment_masses is not None
        multi_label = _segment_mixture(images.map(_later_rows), segment_masses, prompts, scale, prompt_keys)
    else:
        matched = images.map(_later_rows if config.multi_label_match == "segments" else _first_row)
        multi_label = _multi_label(matched, prompts, scale, prompt_keys if config.shares_positives else None)
    total = image_text + config.multi_label_weight * multi_label
    return {"loss": total, "image_text_loss": image_text, "multi_label_loss": multi_label}


def image_text_contrastive_loss(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    logit_scale: Tensor,
    group: dist.ProcessGroup | None = None,
    text_keys: Tensor | None = None,
) -> Tensor:
    """Half the sum of image-to-text and text-to-image cross-entropy over the global batch, for this worker's rows.

    Args:
        image_embeddings: [B,D] float.
        text_embeddings: [B,D] float.
        logit_scale: 0-D, in log space.
        group: Workers of the global batch; None: this one alone.
        text_keys: [B] int64. Texts with equal keys are positives of each other's images. None: only the pair itself is
            positive (the paper).

    Returns:
        0-D float32.
    """
    images, texts = gather([image_embeddings, text_embeddings], group)
    return _image_text(images, texts, logit_scale, None if text_keys is None else gather([text_keys], group)[0])


def multi_label_contrastive_loss(
    image_embeddings: Tensor,
    prompt_embeddings: Tensor,
    logit_scale: Tensor,
    group: dist.ProcessGroup | None = None,
    prompt_keys: Tensor | None = None,
) -> Tensor:
    """Half the sum of image-to-prompt cross-entropy (target 1/K for each own prompt) and prompt-to-image cross-entropy.

    The paper's equation 7 has the logarithm outside the sum over k. We follow the released code, which averages
    logarithms.

    Args:
        image_embeddings: [B,D], or segment embeddings [B,G,D] (`multi_label_match="segments"`): then the similarity of
            an image and a prompt is the smooth maximum over the image's segments.
        prompt_embeddings: [B,K,D].
        logit_scale: 0-D, in log space.
        group: Workers of the global batch; None: this one alone.
        prompt_keys: [B,K] int64. Prompts with equal keys share their positives. None: only a prompt's own image is
            positive (the paper).

    Returns:
        0-D float32.
    """
    images, prompts = gather([image_embeddings, prompt_embeddings], group)
    return _multi_label(images, prompts, logit_scale, None if prompt_keys is None else gather([prompt_keys], group)[0])


def segment_mixture_loss(
    segment_embeddings: Tensor,
    segment_masses: Tensor,
    prompt_embeddings: Tensor,
    logit_scale: Tensor,
    prompt_keys: Tensor,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Multi-label loss in which each segment predicts one noun, weighted by its share of the pixels (not in the paper).

    Let w be the masses clipped at `FULL_WEIGHT_MASS` and normalised. The probability of noun c in image b is
    sum_g w[b,g] softmax_c(z[b,g,c]) over the distinct nouns of the global batch. Its logarithm is averaged over the
    image's own nouns. In the other direction, each noun is classified among the images by logsumexp_g(z + log w), and
    the target is divided equally among the images that have it. The loss is half the sum.

    Args:
        segment_embeddings: [B,G,D].
        segment_masses: [B,G], the share of the image in each segment; sums to 1 over G.
        prompt_embeddings: [B,K,D].
        logit_scale: 0-D, in log space.
        prompt_keys: [B,K] int64, equal for equal nouns.
        group: Workers of the global batch; None: this one alone.

    Returns:
        0-D float32.
    """
    segments, masses, prompts = gather([segment_embeddings, segment_masses, prompt_embeddings], group)
    return _segment_mixture(segments, masses, prompts, logit_scale, gather([prompt_keys], group)[0])


def _image_text(images: Gathered, texts: Gathered, logit_scale: Tensor, keys: Gathered | None = None) -> Tensor:
    images, texts, scale = images.map(_normalized), texts.map(_normalized), clamped_scale(logit_scale)
    image_to_text = scale * images.own @ texts.everyone.T  # [B,WB]
    text_to_image = scale * texts.own @ images.everyone.T
    if keys is None:
        labels = torch.arange(len(images.own), device=images.own.device) + images.first
        return 0.5 * (F.cross_entropy(image_to_text, labels) + F.cross_entropy(text_to_image, labels))
    positive = keys.own[:, None] == keys.everyone
    return 0.5 * (_uniform_cross_entropy(image_to_text, positive) + _uniform_cross_entropy(text_to_image, positive))


def _multi_label(images: Gathered, prompts: Gathered, logit_scale: Tensor, keys: Gathered | None) -> Tensor:
    batch, num_prompts = prompts.own.shape[:2]
    images, scale = images.map(_normalized), clamped_scale(logit_scale)
    prompts = prompts.map(lambda x: _normalized(x).flatten(0, 1))  # [BK,D]
    image_to_prompt = _similarity(images.own, prompts.everyone, scale)  # [B,WBK]
    prompt_to_image = _similarity(images.everyone, prompts.own, scale).T  # [BK,WB]
    first, device = images.first, images.own.device
    if keys is None:
        own_prompts = first * num_prompts + torch.arange(batch * num_prompts, device=device).view(batch, num_prompts)
        own_logits = image_to_prompt.gather(1, own_prompts)
        image_loss = (image_to_prompt.logsumexp(dim=1) - own_logits.mean(dim=1)).mean()
        own_images = torch.arange(first, first + batch, device=device).repeat_interleave(num_prompts)
        return 0.5 * (image_loss + F.cross_entropy(prompt_to_image, own_images))
    # The target 1/K of each own prompt is divided among all prompts of its noun.
    if images.own.ndim == 2:  # so their mean logit is used, which is the logit of their mean
        means = _mean_of_noun(prompts.everyone, keys.everyone)[first * num_prompts :][: batch * num_prompts]
        own_logits = scale * (images.own * means.unflatten(0, (batch, num_prompts)).mean(dim=1)).sum(dim=1)
        image_loss = (image_to_prompt.logsumexp(dim=1) - own_logits).mean()
    else:
        target = _num_equal(keys.own, keys.everyone.reshape(-1, 1), image_to_prompt.dtype)
        image_loss = F.cross_entropy(image_to_prompt, target.div_(num_prompts * _num_same(keys.everyone)))
    return 0.5 * (image_loss + _uniform_cross_entropy(prompt_to_image, _has_noun(keys)))


def _segment_mixture(
    segments: Gathered, masses: Gathered, prompts: Gathered, logit_scale: Tensor, keys: Gathered
) -> Tensor:
    segments, log_weights, scale = segments.map(_normalized), masses.map(_log_weights), clamped_scale(logit_scale)
    batch, num_prompts = keys.own.shape
    # A noun's embedding is the mean over its prompts, which may have different templates.
    prompts = prompts.map(lambda x: _normalized(x).flatten(0, 1))  # [BK,D]
    nouns = scale * F.normalize(_mean_of_noun(prompts.everyone, keys.everyone), dim=-1)  # [WBK,D]
    own_nouns = nouns[segments.first * num_prompts :][: batch * num_prompts]  # [BK,D]
    pairs = keys.map(lambda x: 1 / (x[:, :, None] == x[:, None]).sum(dim=2).to(nouns.dtype))  # [B,K]

    # Each noun is there as often as it has prompts, so it counts by 1 / their number in the sum over distinct nouns.
    log_shares = -_num_same(keys.everyone).to(nouns.dtype).log()
    normalizer = F.linear(segments.own, nouns, log_shares).logsumexp(dim=2, keepdim=True)  # [B,G,1]
    own_logits = segments.own @ own_nouns.unflatten(0, (batch, num_prompts)).mT  # [B,G,K]
    log_probability = (own_logits - normalizer + log_weights.own[..., None]).logsumexp(dim=1)  # [B,K]
    image_loss = -((log_probability * pairs.own).sum(dim=1) / pairs.own.sum(dim=1)).mean()

    by_segment = segments.everyone.transpose(0, 1)  # [G,WB,D]
    noun_logits = F.linear(own_nouns, by_segment.flatten(0, 1), log_weights.everyone.T.flatten())  # [BK,GWB]
    noun_logits = noun_logits.unflatten(1, by_segment.shape[:2]).logsumexp(dim=1)  # [BK,WB]
    noun_losses = noun_logits.logsumexp(dim=1) - _mean_of_positives(noun_logits, _has_noun(keys))
    pairs_per_worker = pairs.everyone.sum() * (batch / len(pairs.everyone))
    return 0.5 * (image_loss + (noun_losses * pairs.own.flatten()).sum() / pairs_per_worker)


def _mean_of_noun(prompts: Tensor, keys: Tensor) -> Tensor:
    """Mean over all prompts with the key of each prompt: [NK,D], [N,K] -> [NK,D]."""
    keys, num_same = keys.flatten(), _num_same(keys)
    place = torch.searchsorted(keys.sort().values, keys)  # equal for equal keys
    return torch.zeros_like(prompts).index_add(0, place, prompts)[place] / num_same[:, None]


def _num_same(keys: Tensor) -> Tensor:
    """Number of prompts with the key of each prompt: [N,K] -> [NK]."""
    keys = keys.flatten()
    ordered = keys.sort().values
    return torch.searchsorted(ordered, keys, right=True) - torch.searchsorted(ordered, keys)


def _num_equal(rows: Tensor, columns: Tensor, dtype: torch.dtype) -> Tensor:
    """Number of pairs of equal keys: [R,K], [C,L] -> [R,C]; of dtype bool, whether there is one."""
    count = torch.zeros(len(rows), len(columns), dtype=dtype, device=rows.device)
    for row_keys, column_keys in itertools.product(rows.unbind(1), columns.unbind(1)):
        count += row_keys[:, None] == column_keys
    return count


def _has_noun(keys: Gathered) -> Tensor:
    """Which images have the noun of each own prompt: [BK,WB] bool."""
    return _num_equal(keys.own.reshape(-1, 1), keys.everyone, torch.bool)


def _log_weights(masses: Tensor) -> Tensor:
    """Logarithm of the segments' weights: masses [B,G] -> [B,G]."""
    weights = (at_least_float32(masses) / FULL_WEIGHT_MASS).clamp(max=1)
    return (weights / weights.sum(dim=1, keepdim=True) + 1e-6).log()


def _normalized(embeddings: Tensor) -> Tensor:
    return F.normalize(at_least_float32(embeddings), dim=-1)


def _first_row(rows: Tensor) -> Tensor:
    return rows[:, 0]


def _later_rows(rows: Tensor) -> Tensor:
    return rows[:, 1:]


def _similarity(images: Tensor, prompts: Tensor, scale: Tensor) -> Tensor:
    """Scaled cosine similarities of images [B,D] or segments [B,G,D] with prompts [P,D] -> [B,P]."""
    if images.ndim == 2:
        return scale * images @ prompts.T
    return (scale * images @ prompts.T).logsumexp(dim=1)  # over segments; [B,G,P] -> [B,P]


def _mean_of_positives(logits: Tensor, positive: Tensor) -> Tensor:
    """Mean of each row's positives: logits, positive (bool) [R,C] -> [R]."""
    return (logits * positive).sum(dim=1) / positive.sum(dim=1)


def _uniform_cross_entropy(logits: Tensor, positive: Tensor) -> Tensor:
    """Cross-entropy with a uniform target over each row's positives: logits, positive (bool) [R,C] -> 0-D."""
    return (logits.logsumexp(dim=1) - _mean_of_positives(logits, positive)).mean()
