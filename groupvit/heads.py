"""Projectors and losses of a training step, with their gradients, slice by slice.

Every matrix product, every reduction and every backward pass is that of one slice, beside the embeddings of all slices
in order. What comes from all slices is either gathered in their order or summed exactly (`groupvit.exact_sums`). So the
results have the same bits for any number of workers.

Shapes: S slices of b images in the global batch, n of them on this worker, R rows per image, K prompts, G segments,
C channels of a tower, H hidden channels, D channels of the shared space.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from groupvit.collectives import Gathered, Slices
from groupvit.config import LossConfig, Precision
from groupvit.exact_sums import add_terms, from_fixed
from groupvit.gradients import GradientReducer
from groupvit.losses import contrastive_losses
from groupvit.model import GroupViT, Projector
from groupvit.precision import autocast


@dataclasses.dataclass(frozen=True)
class TowerFeatures:
    """Outputs of the towers for a slice, as the losses need them."""

    tensors: tuple[Tensor, ...]
    """Image rows [b,R,C]: the pooled token and, if the loss uses segments, the segment tokens. Text rows [b,1+K,C]. If
    the loss uses them, segment masses [b,G]."""
    groups_used: tuple[Tensor, ...] = ()
    """0-D: mean number of groups that win at least one segment, per grouping stage."""

    def detached(self) -> "TowerFeatures":
        """The same values as leaves that require gradients."""
        return TowerFeatures(tuple(_leaf(tensor) for tensor in self.tensors), self.groups_used)


def head_gradients(
    model: GroupViT,
    features: Sequence[TowerFeatures],
    prompt_keys: Sequence[Tensor] | None,
    *,
    loss: LossConfig,
    precision: Precision,
    slices: Slices,
    reducer: GradientReducer,
) -> dict[str, list[Tensor]]:
    """Store the gradients of the features in their `.grad`, and give those of the heads' parameters to `reducer`.

    Args:
        model: The model. Its running batch statistics are updated.
        features: Leaves, of each own slice.
        prompt_keys: [b,K] int64 of each own slice, if the loss needs them.
        loss: The losses.
        precision: Precision of the projectors.
        slices: How the slices are divided among the workers.
        reducer: Sums the gradients.

    Returns 0-D metrics: the losses of each own slice.
    """
    projectors = [model.image_projector, model.text_projector]
    with autocast(features[0].tensors[0].device, precision):
        hidden = [[p.hidden_rows(x) for p, x in zip(projectors, f.tensors, strict=False)] for f in features]
        moments = [[_moments(rows) for rows in of_slice] for of_slice in hidden]
        statistics = _Statistics(projectors, moments, len(hidden[0][0]), len(hidden[0][1]), slices)
        inputs = [[_leaf(rows) for rows in of_slice] for of_slice in hidden]
        embeddings = [
            [
                p.outputs(x, s).unflatten(0, (len(f.tensors[0]), -1))
                for p, x, s in zip(projectors, leaves, statistics.leaves, strict=True)
            ]
            for f, leaves in zip(features, inputs, strict=True)
        ]  # [b,R,D] and [b,1+K,D]
    rows = [torch.stack([x.detach() for x in same]) for same in zip(*embeddings, strict=True)]
    if len(features[0].tensors) > len(projectors):
        rows.append(torch.stack([f.tensors[-1].detach() for f in features]))
    keys = slices.gather([torch.stack(list(prompt_keys))])[0].flatten(0, 1) if prompt_keys is not None else None
    metrics, gradients = _loss_gradients(model, slices.gather(rows), keys, loss, slices, reducer)

    for place, of_slice in enumerate(embeddings):
        torch.autograd.backward(of_slice, [gradient[place] for gradient in gradients[: len(projectors)]])
        statistics.take_gradient()
        reducer.add(model.head_parameters())
    of_moments = statistics.gradients_of_moments()
    for place, (of_slice, leaves) in enumerate(zip(hidden, inputs, strict=True)):
        through = [*of_slice, *moments[place]]
        torch.autograd.backward(through, [*(x.grad for x in leaves), *(gradient[place] for gradient in of_moments)])
        reducer.add(model.head_parameters())
        if len(gradients) > len(projectors):
            features[place].tensors[-1].grad = gradients[-1][place]
    return metrics


def _loss_gradients(
    model: GroupViT,
    everyone: Sequence[Tensor],
    keys: Tensor | None,
    loss: LossConfig,
    slices: Slices,
    reducer: GradientReducer,
) -> tuple[dict[str, list[Tensor]], list[Tensor]]:
    """Losses of the own slices; and the gradients of the own slices' rows, of the losses of all slices.

    everyone: [S,b,...] of each kind of rows.
    """
    leaves = [_leaf(rows.flatten(0, 1)) for rows in everyone]  # [S*b,...]
    size = everyone[0].shape[1]
    metrics: dict[str, list[Tensor]] = {}
    sums = [torch.empty(rows.shape, dtype=torch.int64, device=rows.device) for rows in leaves]
    for index in slices.own:
        own = slice(index * size, (index + 1) * size)
        images, texts, *masses = (Gathered(rows[own], rows, own.start) for rows in leaves)
        losses = contrastive_losses(
            images,
            texts,
            model.logit_scale,
            model.multi_label_logit_scale,
            loss,
            segment_masses=masses[0] if masses else None,
            prompt_keys=None if keys is None else Gathered(keys[own], keys, own.start),
        )
        (losses["loss"] / slices.count).backward()
        reducer.add(model.head_parameters())
        for rows, total in zip(leaves, sums, strict=True):
            gradient = torch.zeros_like(rows) if rows.grad is None else rows.grad
            is_first = index == slices.own.start
            reducer.report(add_terms(total.view(-1), gradient.view(-1), slices.count, is_first=is_first))
            rows.grad = None
        for name, value in losses.items():
            metrics.setdefault(name, []).append(value.detach())
    summed = slices.sum_to_owners(torch.cat([x.view(slices.count, -1) for x in sums], dim=1))
    parts = from_fixed(summed, leaves[0].dtype).split([rows[0].numel() for rows in everyone], dim=1)
    return metrics, [part.unflatten(1, rows.shape[1:]) for part, rows in zip(parts, everyone, strict=True)]


class _Statistics:
    """Batch statistics of the projectors over the rows of all slices, and their way back to the slices' moments."""

    def __init__(
        self,
        projectors: Sequence[Projector],
        moments: Sequence[Sequence[Tensor]],
        image_rows: int,
        text_rows: int,
        slices: Slices,
    ) -> None:
        self._slices = slices
        own = [torch.stack([x.detach() for x in same]) for same in zip(*moments, strict=True)]  # [n,2,H]
        self._everyone = [_leaf(x) for x in slices.gather(own)]  # [S,2,H]
        self._joined = [_joined(x) for x in self._everyone]
        self.leaves = [_leaf(x) for x in self._joined]
        """Mean and variance [2,H] of each projector."""
        for projector, statistics, num_rows in zip(projectors, self._joined, (image_rows, text_rows), strict=True):
            projector.track(statistics.detach(), num_rows * slices.count)
        self._gradients: list[list[Tensor]] = [[] for _ in projectors]

    def take_gradient(self) -> None:
        """Take the gradient of the leaves, of one own slice."""
        for leaf, gradients in zip(self.leaves, self._gradients, strict=True):
            assert leaf.grad is not None
            gradients.append(leaf.grad)
            leaf.grad = None

    def gradients_of_moments(self) -> list[Tensor]:
        """Gradients of the own slices' moments, of the losses of all slices: [n,2,H] for each projector."""
        everyone = self._slices.gather([torch.stack(gradients) for gradients in self._gradients])
        gradients = torch.autograd.grad(self._joined, self._everyone, [x.sum(dim=0) for x in everyone])
        own = self._slices.own
        return [gradient[own.start :: own.step] for gradient in gradients]


def _moments(rows: Tensor) -> Tensor:
    """Variance and mean of each channel: [N,H] -> [2,H]."""
    with torch.autocast(rows.device.type, enabled=False):
        return torch.stack(torch.var_mean(rows, dim=0, correction=0))


def _joined(moments: Tensor) -> Tensor:
    """Mean and variance of the rows of all slices, of the slices' variances and means: [S,2,H] -> [2,H].

    As exact as the statistics of all rows at once.
    """
    variances, means = moments.unbind(1)
    mean = means.mean(dim=0)
    return torch.stack([mean, (variances + (means - mean).square()).mean(dim=0)])


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_()
