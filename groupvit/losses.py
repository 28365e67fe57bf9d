"""The contrastive losses (paper section 3.2, released numbers where they differ from its equations).

These functions normalise the embeddings. The process group is an argument; None means a single worker. Every worker
compares its own rows with the embeddings of all workers, gathered with gradient. So the mean of the workers' losses is
the loss of the global batch. No label tensor is built: memory is that of the logits, local batch x global batch (x
prompts).

Shapes: B images per worker, W workers, K prompts per image, G segments, D channels.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from groupvit import collectives
from groupvit.precision import at_least_float32

MAX_LOGIT_SCALE = 100.0
"""Upper limit of exp(logit scale), as in CLIP."""
FULL_WEIGHT_MASS = 0.05
"""Share of the image from which a segment has full weight, so that small objects count as much as large backgrounds."""


def clamped_scale(logit_scale: Tensor) -> Tensor:
    """exp(logit_scale), at most 100."""
    return logit_scale.exp().clamp(max=MAX_LOGIT_SCALE)


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
    images = F.normalize(at_least_float32(image_embeddings), dim=-1)
    texts = F.normalize(at_least_float32(text_embeddings), dim=-1)
    scale = clamped_scale(logit_scale)
    image_to_text = scale * images @ collectives.all_gather(texts, group).T  # [B,WB]
    text_to_image = scale * texts @ collectives.all_gather(images, group).T
    if text_keys is None:
        labels = torch.arange(len(images), device=images.device) + collectives.rank(group) * len(images)
        return 0.5 * (F.cross_entropy(image_to_text, labels) + F.cross_entropy(text_to_image, labels))
    positive = text_keys[:, None] == collectives.all_gather(text_keys, group)[None, :]
    return 0.5 * (_uniform_cross_entropy(image_to_text, positive) + _uniform_cross_entropy(text_to_image, positive))


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
    batch, num_prompts = prompt_embeddings.shape[:2]
    images = F.normalize(at_least_float32(image_embeddings), dim=-1)
    prompts = F.normalize(at_least_float32(prompt_embeddings), dim=-1).flatten(0, 1)  # [BK,D]
    scale = clamped_scale(logit_scale)
    image_to_prompt = _similarity(images, collectives.all_gather(prompts, group), scale)  # [B,WBK]
    prompt_to_image = _similarity(collectives.all_gather(images, group), prompts, scale).T  # [BK,WB]
    first = collectives.rank(group) * batch
    if prompt_keys is None:
        own_prompts = first * num_prompts + torch.arange(batch * num_prompts, device=images.device).view(
            batch, num_prompts
        )
        own_logits = image_to_prompt.gather(1, own_prompts)
        image_loss = (image_to_prompt.logsumexp(dim=1) - own_logits.mean(dim=1)).mean()
        own_images = torch.arange(first, first + batch, device=images.device).repeat_interleave(num_prompts)
        return 0.5 * (image_loss + F.cross_entropy(prompt_to_image, own_images))
    all_keys = collectives.all_gather(prompt_keys, group)  # [WB,K]
    classes, class_of_prompt, class_sizes = all_keys.unique(return_inverse=True, return_counts=True)
    # The target 1/K of each own prompt is divided among all prompts of its class, so the class's mean logit is used.
    class_logits = images.new_zeros(batch, len(classes)).index_add(1, class_of_prompt.flatten(), image_to_prompt)
    own_classes = class_of_prompt[first : first + batch]
    own_logits = (class_logits / class_sizes).gather(1, own_classes)
    image_loss = (image_to_prompt.logsumexp(dim=1) - own_logits.mean(dim=1)).mean()
    has_class = torch.zeros(len(all_keys), len(classes), dtype=torch.bool, device=images.device)
    has_class.scatter_(1, class_of_prompt, True)
    return 0.5 * (image_loss + _uniform_cross_entropy(prompt_to_image, has_class.T[own_classes.flatten()]))


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
    segments = F.normalize(at_least_float32(segment_embeddings), dim=-1)
    prompts = collectives.all_gather(at_least_float32(prompt_embeddings), group)  # [WB,K,D]
    keys = collectives.all_gather(prompt_keys, group)
    nouns, noun_of_prompt = keys.unique(return_inverse=True)
    # A noun's embedding is the mean over its prompts, which may have different templates.
    sums = prompts.new_zeros(len(nouns), prompts.shape[-1])
    embeddings = F.normalize(
        sums.index_add(0, noun_of_prompt.flatten(), F.normalize(prompts, dim=-1).flatten(0, 1)), dim=-1
    )
    has_noun = torch.zeros(len(keys), len(nouns), dtype=torch.bool, device=keys.device)
    has_noun.scatter_(1, noun_of_prompt, True)  # [WB,U]
    scale = clamped_scale(logit_scale)
    weights = (at_least_float32(segment_masses) / FULL_WEIGHT_MASS).clamp(max=1)
    log_weights = (weights / weights.sum(dim=1, keepdim=True) + 1e-6).log()[..., None]  # [B,G,1]

    first = collectives.rank(group) * len(segments)
    own = has_noun[first : first + len(segments)]  # [B,U]
    log_probability = ((scale * segments @ embeddings.T).log_softmax(dim=-1) + log_weights).logsumexp(dim=1)  # [B,U]
    image_loss = -((log_probability * own).sum(dim=1) / own.sum(dim=1)).mean()

    pairs = own.sum(dim=0)  # number of this worker's images per noun
    present = pairs.nonzero().flatten()
    all_segments, all_log_weights = collectives.all_gather(segments, group), collectives.all_gather(log_weights, group)
    noun_logits = (scale * all_segments @ embeddings[present].T + all_log_weights).logsumexp(dim=1).T  # [P,WB]
    positive = has_noun.T[present]
    own_logits = (noun_logits * positive).sum(dim=1) / positive.sum(dim=1)
    pairs_per_worker = has_noun.sum() / collectives.world_size(group)
    noun_loss = ((noun_logits.logsumexp(dim=1) - own_logits) * pairs[present]).sum() / pairs_per_worker
    return 0.5 * (image_loss + noun_loss)


def _similarity(images: Tensor, prompts: Tensor, scale: Tensor) -> Tensor:
    """Scaled cosine similarities of images [B,D] or segments [B,G,D] with prompts [P,D] -> [B,P]."""
    if images.ndim == 2:
        return scale * images @ prompts.T
    return (scale * images @ prompts.T).logsumexp(dim=1)  # over segments; [B,G,P] -> [B,P]


def _uniform_cross_entropy(logits: Tensor, positive: Tensor) -> Tensor:
    """Cross-entropy with a uniform target over each row's positives: logits, positive (bool) [R,C] -> 0-D."""
    own = (logits * positive).sum(dim=1) / positive.sum(dim=1)
    return (logits.logsumexp(dim=1) - own).mean()
