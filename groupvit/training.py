"""One step of contrastive pretraining, on one worker or many.

Gradient accumulation keeps all negatives. First, the towers' outputs for every micro-batch are cached without a graph.
Then projectors and losses run once over all of them, so the batch statistics are those of the global batch. Last, the
towers run again on each micro-batch with the same noise, to backpropagate the gradients of their outputs. So the
gradient does not depend on how a global batch is divided into micro-batches and workers.

Shapes: b images per micro-batch, B per worker, K prompts, T token ids, G segments, C channels of a tower.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from groupvit.config import LossConfig, Precision, ReducePrecision
from groupvit.gradients import GradientReducer
from groupvit.losses import clamped_scale, contrastive_losses
from groupvit.model import GroupViT, project
from groupvit.precision import autocast
from groupvit.text_encoder import ArrangedTexts
from groupvit.transformer import Block


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """A micro-batch, on the model's device."""

    images: Tensor
    """[b,3,H,W] float32, normalised."""
    token_ids: Tensor
    """[b,1+K,T] int64, padded with zeros: the caption, then its prompts. With `texts`, on any device."""
    texts: ArrangedTexts | None = None
    """The same texts in this order, arranged ahead. None: the text tower does it, and on a GPU the host waits."""
    prompt_keys: Tensor | None = None
    """[b,K] int64, equal for prompts of the same noun. Needed by `shared_positives` and by `mixture`."""


def train_step(
    model: GroupViT,
    optimizer: torch.optim.Optimizer,
    micro_batches: Sequence[Batch],
    *,
    loss: LossConfig,
    seed: int,
    step: int,
    precision: Precision = "float32",
    reduce_precision: ReducePrecision = "float32",
    clip_grad_norm: float | None = None,
    group: dist.ProcessGroup | None = None,
) -> dict[str, Tensor]:
    """Update the model once from this worker's micro-batches. All workers need the same number and size of them.

    `reduce_precision` is that of the gradients which the workers send each other.

    Returns 0-D metrics: `loss`, its parts, `grad_norm` (before clipping) and the logit scales, which are the same on
    every worker; and `groups_used_l`, the mean number of groups of stage l that win a segment in this worker's first
    micro-batch.
    """
    optimizer.zero_grad(set_to_none=True)
    metrics = compute_gradients(
        model,
        micro_batches,
        loss=loss,
        seed=seed,
        step=step,
        precision=precision,
        reduce_precision=reduce_precision,
        group=group,
    )
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    if clip_grad_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, clip_grad_norm, norm)
    metrics["grad_norm"] = norm
    optimizer.step()
    return metrics


def compute_gradients(
    model: GroupViT,
    micro_batches: Sequence[Batch],
    *,
    loss: LossConfig,
    seed: int,
    step: int,
    precision: Precision = "float32",
    reduce_precision: ReducePrecision = "float32",
    group: dist.ProcessGroup | None = None,
) -> dict[str, Tensor]:
    """Store the global batch's gradient in `.grad`, equal on all workers. Returns the metrics of `train_step`."""
    device = model.logit_scale.device
    rank, world_size = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))

    def noise(index: int) -> torch.Generator:
        # Seeded by the micro-batch's index in the global batch, so that it does not depend on the number of workers.
        entropy = np.random.SeedSequence((seed, step, index * world_size + rank)).generate_state(1, np.uint64)
        return torch.Generator(device).manual_seed(int(entropy[0] >> 1))

    def towers(index: int) -> _TowerFeatures:
        with autocast(device, precision):
            return _tower_features(model, micro_batches[index], loss, noise(index))

    reducer = GradientReducer(model.parameters(), group, reduce_precision)
    if len(micro_batches) == 1:
        features = first = towers(0)
        reducer.arm(model.parameters())
        metrics = _backward_loss(model, features, micro_batches, loss, precision, group)
    else:
        with torch.no_grad():
            cached = [towers(index) for index in range(len(micro_batches))]
        first = cached[0]
        features = _TowerFeatures.concatenate(cached)
        reducer.arm(model.head_parameters())
        metrics = _backward_loss(model, features, micro_batches, loss, precision, group)
        sizes = [len(batch.images) for batch in micro_batches]
        gradients = zip(
            *(tensor.grad.split(sizes) for tensor in features.tensors if tensor.grad is not None), strict=True
        )
        for index, gradient in enumerate(gradients):
            if index == len(micro_batches) - 1:
                reducer.arm(model.tower_parameters())
            torch.autograd.backward(towers(index).tensors, gradient)
    metrics = reducer.finish(metrics)
    metrics["logit_scale"] = clamped_scale(model.logit_scale.detach())
    metrics["multi_label_logit_scale"] = clamped_scale(model.multi_label_logit_scale.detach())
    for stage, used in enumerate(first.groups_used):
        metrics[f"groups_used_{stage}"] = used
    return metrics


def compile_blocks(model: nn.Module) -> None:
    """Apply torch.compile to every transformer block in place. This gives most of the speed-up with one small graph,
    which noise does not recompile.
    """
    for module in model.modules():
        if isinstance(module, Block):
            module.compile(dynamic=True)


@dataclasses.dataclass(frozen=True)
class _TowerFeatures:
    """Outputs of the towers that the losses need: of one micro-batch, or of all of a worker's, concatenated."""

    tensors: tuple[Tensor, ...]
    """Image rows [b,R,C]: the pooled token and, if the loss uses segments, the segment tokens. Text rows [b,1+K,C]. If
    the loss uses them, segment masses [b,G]."""
    groups_used: tuple[Tensor, ...] = ()

    @classmethod
    def concatenate(cls, parts: Sequence["_TowerFeatures"]) -> "_TowerFeatures":
        """Concatenate parts into leaves that require gradients."""
        return cls(tuple(torch.cat(same).requires_grad_() for same in zip(*(p.tensors for p in parts), strict=True)))


def _tower_features(model: GroupViT, batch: Batch, loss: LossConfig, noise: torch.Generator) -> _TowerFeatures:
    image = model.image_encoder(batch.images, noise)
    texts = batch.token_ids.flatten(0, 1) if batch.texts is None else batch.texts
    text_rows = model.text_encoder(texts).unflatten(0, batch.token_ids.shape[:2])
    image_rows, masses = image.pooled[:, None], ()
    if loss.looks_at_segments:
        image_rows = torch.cat([image_rows, image.segment_tokens], dim=1)
    if loss.looks_at_segments and loss.multi_label_match == "mixture":
        masses = (image.segment_masses,)
    groups_used = tuple(_groups_used(logits) for logits in image.assignment_logits)
    return _TowerFeatures((image_rows, text_rows, *masses), groups_used)


def _backward_loss(
    model: GroupViT,
    features: _TowerFeatures,
    micro_batches: Sequence[Batch],
    loss: LossConfig,
    precision: Precision,
    group: dist.ProcessGroup | None,
) -> dict[str, Tensor]:
    image_rows, text_rows, *masses = features.tensors
    with autocast(image_rows.device, precision):
        images, texts = project([model.image_projector, model.text_projector], [image_rows, text_rows], group)
    losses = contrastive_losses(
        images,
        texts,
        model.logit_scale,
        model.multi_label_logit_scale,
        loss,
        segment_masses=masses[0] if masses else None,
        prompt_keys=_prompt_keys(micro_batches) if loss.shares_positives else None,
        group=group,
    )
    losses["loss"].backward()
    return {name: value.detach() for name, value in losses.items()}


def _prompt_keys(micro_batches: Sequence[Batch]) -> Tensor:
    keys = [batch.prompt_keys for batch in micro_batches if batch.prompt_keys is not None]
    assert len(keys) == len(micro_batches), "this loss needs the keys of the prompts"
    return torch.cat(keys)


@torch.no_grad()
def _groups_used(logits: Tensor) -> Tensor:
    """Mean number of groups per image that win at least one segment: [b,G,S] -> 0-D."""
    used = torch.zeros(logits.shape[:2], device=logits.device).scatter_(1, logits.argmax(dim=1), 1.0)
    return used.sum(dim=1).mean()
