"""One step of contrastive pretraining, on one worker or many.

Gradient accumulation keeps all negatives. First, the towers' outputs for every micro-batch are cached, and the graph of
the first one is kept. Then projectors and losses run once over all of them, so the batch statistics are those of the
global batch. Last, the gradients of the outputs go back through the towers. For each micro-batch but the first, these
run again for this, with the same noise. So the gradient does not depend on how a global batch is divided into
micro-batches and workers.

Shapes: b images per micro-batch, B per worker, K prompts, T token ids, G segments, C channels of a tower.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from groupvit.config import LossConfig, Precision, ReducePrecision
from groupvit.device_augment import AugmentedImages
from groupvit.finishing import ByteImages
from groupvit.gradients import GradientReducer
from groupvit.image_encoder import ImageFeatures, ImageNoise
from groupvit.losses import clamped_scale, contrastive_losses
from groupvit.model import GroupViT, project
from groupvit.noise import NoiseSource, Uniform, generator_noise
from groupvit.precision import autocast
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
    reduce_precision: ReducePrecision = "float32",
    clip_grad_norm: float | None = None,
    noise: NoiseSource = generator_noise,
    towers: Towers | None = None,
    group: dist.ProcessGroup | None = None,
) -> dict[str, Tensor]:
    """Update the model once from this worker's micro-batches. All workers need the same number and size of them.

    Args:
        model: The model, on its device, in training mode.
        optimizer: Its optimiser, with the learning rate of the step.
        micro_batches: This worker's micro-batches. They are taken one by one, so the first may be computed while the
            next is made.
        loss: The losses.
        seed: Seed of the noise.
        step: Index of the step, which changes the noise.
        precision: Precision of the towers and projectors.
        clip_grad_norm: Largest norm of the gradient. None: not clipped.
        reduce_precision: Precision of the gradients that the workers send each other.
        noise: Makes the source of the noise.
        towers: The passes through the model's towers. None: as they are, not compiled.
        group: The workers. None: this one alone.

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
        noise=noise,
        towers=towers,
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
    micro_batches: Iterable[Batch],
    *,
    loss: LossConfig,
    seed: int,
    step: int,
    precision: Precision = "float32",
    reduce_precision: ReducePrecision = "float32",
    noise: NoiseSource = generator_noise,
    towers: Towers | None = None,
    group: dist.ProcessGroup | None = None,
) -> dict[str, Tensor]:
    """Store the global batch's gradient in `.grad`, equal on all workers. Arguments and metrics as of `train_step`."""
    device = model.logit_scale.device
    towers = Towers.of(model) if towers is None else towers
    rank, world_size = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))

    def run_towers(index: int) -> TowerFeatures:
        # Seeded by the micro-batch's index in the global batch, so that it does not depend on the number of workers.
        entropy = np.random.SeedSequence((seed, step, index * world_size + rank)).generate_state(1, np.uint64)
        uniform = noise(int(entropy[0] >> 1), device)
        return tower_features(model, towers, batches[index], loss, uniform, precision)

    batches: list[Batch] = []
    passes: list[TowerFeatures] = []
    for index, batch in enumerate(micro_batches):
        batches.append(batch)
        with torch.set_grad_enabled(index == 0):  # the first pass is not repeated
            passes.append(run_towers(index))
    features = TowerFeatures.concatenate(passes)
    reducer = GradientReducer([*model.tower_parameters(), *model.head_parameters()], group, reduce_precision)
    reducer.arm(model.head_parameters())
    metrics = _backward_loss(model, features, batches, loss, precision, group)
    sizes = [len(batch) for batch in batches]
    gradients = zip(*(tensor.grad.split(sizes) for tensor in features.tensors if tensor.grad is not None), strict=True)
    for index, gradient in enumerate(gradients):
        with_graph = passes[0] if index == 0 else run_towers(index)
        if index == len(batches) - 1:
            reducer.arm(model.tower_parameters())
        torch.autograd.backward(with_graph.tensors, gradient)
    metrics = reducer.finish(metrics)
    metrics["logit_scale"] = clamped_scale(model.logit_scale.detach())
    metrics["multi_label_logit_scale"] = clamped_scale(model.multi_label_logit_scale.detach())
    for stage, used in enumerate(passes[0].groups_used):
        metrics[f"groups_used_{stage}"] = used
    return metrics


@dataclasses.dataclass(frozen=True)
class TowerFeatures:
    """Outputs of the towers that the losses need: of one micro-batch, or of all of a worker's, concatenated."""

    tensors: tuple[Tensor, ...]
    """Image rows [b,R,C]: the pooled token and, if the loss uses segments, the segment tokens. Text rows [b,1+K,C]. If
    the loss uses them, segment masses [b,G]."""
    groups_used: tuple[Tensor, ...] = ()

    @classmethod
    def concatenate(cls, parts: Sequence["TowerFeatures"]) -> "TowerFeatures":
        """Concatenate parts into leaves that require gradients."""
        together = (torch.cat([x.detach() for x in same]) for same in zip(*(p.tensors for p in parts), strict=True))
        return cls(tuple(tensor.requires_grad_() for tensor in together))


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


def _backward_loss(
    model: GroupViT,
    features: TowerFeatures,
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
