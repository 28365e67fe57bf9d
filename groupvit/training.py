"""One step of contrastive pretraining, on one worker or many.

A global batch consists of slices, the micro-batches, which the workers share out. Accumulation keeps all negatives.
First, the towers' outputs for every slice are cached, and the graph of the first one is kept. Then projectors and
losses run with the statistics and the embeddings of the global batch (`groupvit.heads`). Last, the gradients of the
outputs go back through the towers. For each slice but the first, these run again for this, with the same noise.

All arithmetic is that of one slice, and sums over slices are exact. So a step gives the same bits for any number of
workers, on processors of one kind.

Shapes: b images per slice, K prompts, T token ids, G groups, S segments.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from groupvit.collectives import Slices, rank, world_size
from groupvit.config import LossConfig, Precision, ReducePrecision
from groupvit.device_augment import AugmentedImages
from groupvit.finishing import ByteImages
from groupvit.gradients import GradientReducer
from groupvit.heads import TowerFeatures, head_gradients
from groupvit.image_encoder import ImageFeatures, ImageNoise
from groupvit.model import GroupViT, clamped_scale
from groupvit.noise import NoiseSource, Uniform, generator_noise
from groupvit.precision import autocast
from groupvit.step_guard import StepGuard, skipping
from groupvit.text_encoder import ArrangedTexts, arrange_texts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """A micro-batch, on the model's device."""

    images: Tensor | ByteImages | AugmentedImages
    """[b,3,H,W] float32, normalised; or bytes, which are normalised when it is the micro-batch's turn."""
    token_ids: Tensor
    """[b,1+K,T] int64, padded with zeros: the caption, then its prompts. With `texts`, on any device."""
    texts: ArrangedTexts | None = None
    """The same texts in this order, arranged ahead. None: the text tower does it, and on a GPU the host waits."""
    prompt_keys: Tensor | None = None
    """[b,K] int64, equal for prompts of the same noun. Needed by `shared_positives` and by `mixture`."""

    def __len__(self) -> int:
        return len(self.token_ids)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """Apply a function to each tensor, for example to copy it to another device."""
        return Batch(
            images=function(self.images) if isinstance(self.images, Tensor) else self.images.map(function),
            token_ids=function(self.token_ids),
            texts=None if self.texts is None else self.texts.map(function),
            prompt_keys=None if self.prompt_keys is None else function(self.prompt_keys),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Towers:
    """The passes through a model's two towers in training: as they are, or compiled (`groupvit.compilation`)."""

    image: Callable[[Tensor, ImageNoise], ImageFeatures]
    text: Callable[[ArrangedTexts], Tensor]

    @classmethod
    def of(cls, model: GroupViT) -> "Towers":
        """The towers as they are."""
        return cls(image=model.image_encoder, text=model.text_encoder)


def train_step(
    model: GroupViT,
    optimizer: torch.optim.Optimizer,
    micro_batches: Iterable[Batch],
    *,
    loss: LossConfig,
    seed: int,
    step: int,
    precision: Precision = "float32",
    reduce_precision: ReducePrecision = "exact",
    clip_grad_norm: float | None = None,
    guard: StepGuard | None = None,
    skip: bool = False,
    noise: NoiseSource = generator_noise,
    towers: Towers | None = None,
    group: dist.ProcessGroup | None = None,
    num_slices: int | None = None,
    first_rank: int = 0,
) -> dict[str, Tensor]:
    """Update the model once from this worker's micro-batches.

    A step whose loss or gradient is not finite changes nothing: neither weights nor the optimiser's state nor running
    statistics.

    Args:
        model: The model, on its device, in training mode.
        optimizer: Its optimiser, fused, with the learning rate of the step.
        micro_batches: This worker's slices of the global batch: those that come to it when the workers take one in
            turn, all of the same size. They are taken one by one, so the first may be computed while the next is made.
        loss: The losses.
        seed: Seed of the noise.
        step: Index of the step, which changes the noise.
        precision: Precision of the towers and projectors.
        reduce_precision: How gradients are summed over slices and workers (`groupvit.gradients`).
        clip_grad_norm: Largest norm of the gradient. None: not clipped.
        guard: Skips steps whose gradient is much larger than before, too, and counts the skipped ones.
        skip: Whether to skip the step, whatever its gradient is. It is not counted.
        noise: Makes the source of the noise.
        towers: The passes through the model's towers. None: as they are, not compiled.
        group: The workers. None: this one alone.
        num_slices: Number of slices of the global batch. None: every worker has as many as this one.
        first_rank: Rank of the worker of the first slice.

    Returns 0-D metrics, the same on every worker: `loss`, its parts, `grad_norm` (before clipping), the logit scales,
    `groups_used_l`, the mean number of groups of stage l that win a segment, and `skipped`, 1 if the step was skipped.
    """
    guard = StepGuard(None, model.logit_scale.device) if guard is None else guard
    statistics = [buffer.clone() for buffer in model.buffers()]
    optimizer.zero_grad(set_to_none=True)
    metrics = compute_gradients(
        model,
        micro_batches,
        loss=loss,
        seed=seed,
        step=step,
        precision=precision,
        reduce_precision=reduce_precision,
        noise=noise,
        towers=towers,
        group=group,
        num_slices=num_slices,
        first_rank=first_rank,
    )
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    norm = torch.where(metrics["loss"].isfinite(), norm, math.nan)
    if clip_grad_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, clip_grad_norm, norm)
    skipped = guard.skips(norm, by_order=skip)
    with skipping(optimizer, skipped):
        optimizer.step()
    for buffer, before in zip(model.buffers(), statistics, strict=True):
        buffer.copy_(torch.where(skipped, before, buffer))
    metrics["grad_norm"] = norm
    metrics["skipped"] = skipped.to(norm.dtype)
    return metrics


def compute_gradients(
    model: GroupViT,
    micro_batches: Iterable[Batch],
    *,
    loss: LossConfig,
    seed: int,
    step: int,
    precision: Precision = "float32",
    reduce_precision: ReducePrecision = "exact",
    noise: NoiseSource = generator_noise,
    towers: Towers | None = None,
    group: dist.ProcessGroup | None = None,
    num_slices: int | None = None,
    first_rank: int = 0,
) -> dict[str, Tensor]:
    """Store the global batch's gradient in `.grad`, equal on all workers. Arguments and metrics as of `train_step`.

    If a number of the step is not finite, or too large to be summed exactly, the loss is NaN.
    """
    device = model.logit_scale.device
    towers = Towers.of(model) if towers is None else towers
    size = world_size(group)
    first_own = (rank(group) - first_rank) % size

    def run_towers(place: int) -> TowerFeatures:
        # Seeded by the slice's index in the global batch, so that it does not depend on the number of workers.
        entropy = np.random.SeedSequence((seed, step, first_own + place * size)).generate_state(1, np.uint64)
        uniform = noise(int(entropy[0] >> 1), device)
        return tower_features(model, towers, batches[place], loss, uniform, precision)

    batches: list[Batch] = []
    passes: list[TowerFeatures] = []
    for place, batch in enumerate(micro_batches):
        batches.append(batch)
        with torch.set_grad_enabled(place == 0):  # the first pass is not repeated
            passes.append(run_towers(place))
    slices = Slices(num_slices or len(batches) * size, group, first_rank)
    assert len(batches) == len(slices.own), f"{len(batches)} micro-batches, but {slices} has {len(slices.own)}"
    features = [each.detached() for each in passes]
    reducer = GradientReducer(
        [*model.tower_parameters(), *model.head_parameters()], group, slices.count, reduce_precision
    )
    metrics = head_gradients(
        model,
        features,
        _prompt_keys(batches) if loss.shares_positives else None,
        loss=loss,
        precision=precision,
        slices=slices,
        reducer=reducer,
    )
    for stage, used in enumerate(zip(*(each.groups_used for each in passes), strict=True)):
        metrics[f"groups_used_{stage}"] = list(used)
    reducer.complete(model.head_parameters())
    for place, leaves in enumerate(features):
        with_graph = passes[0] if place == 0 else run_towers(place)
        is_last = place == len(features) - 1
        if is_last:
            reducer.arm(model.tower_parameters())
        torch.autograd.backward(with_graph.tensors, [leaf.grad for leaf in leaves.tensors])
        if not is_last:
            reducer.add(model.tower_parameters())
    averages, right = reducer.finish(metrics)
    averages["loss"] = torch.where(right, averages["loss"], math.nan)
    averages["logit_scale"] = clamped_scale(model.logit_scale.detach())
    averages["multi_label_logit_scale"] = clamped_scale(model.multi_label_logit_scale.detach())
    return averages


def tower_features(
    model: GroupViT, towers: Towers, batch: Batch, loss: LossConfig, uniform: Uniform, precision: Precision
) -> TowerFeatures:
    """Run both towers on a micro-batch, with noise drawn by `uniform`."""
    images = batch.images if isinstance(batch.images, Tensor) else batch.images.finished()
    patch_size = model.config.image.patch_size
    grid = (images.shape[-2] // patch_size, images.shape[-1] // patch_size)
    drawn = model.image_encoder.draw_noise(len(images), grid, uniform)
    texts = batch.texts
    if texts is None:
        texts = arrange_texts(batch.token_ids.flatten(0, 1), model.config.text)
    with autocast(images.device, precision):
        text_rows = towers.text(texts).unflatten(0, batch.token_ids.shape[:2])
        image = towers.image(images, drawn)
    image_rows, masses = image.pooled[:, None], ()
    if loss.looks_at_segments:
        image_rows = torch.cat([image_rows, image.segment_tokens], dim=1)
    if loss.looks_at_segments and loss.multi_label_match == "mixture":
        masses = (image.segment_masses,)
    groups_used = tuple(_groups_used(logits) for logits in image.assignment_logits)
    return TowerFeatures((image_rows, text_rows, *masses), groups_used)


def _prompt_keys(micro_batches: Iterable[Batch]) -> list[Tensor]:
    keys = [batch.prompt_keys for batch in micro_batches if batch.prompt_keys is not None]
    assert keys, "this loss needs the keys of the prompts"
    return keys


@torch.no_grad()
def _groups_used(logits: Tensor) -> Tensor:
    """Mean number of groups per image that win at least one segment: [b,G,S] -> 0-D."""
    used = torch.zeros(logits.shape[:2], device=logits.device).scatter_(1, logits.argmax(dim=1), 1.0)
    return used.sum(dim=1).mean()
