"""The GroupViT model: image tower, text tower, their projectors, and the logit scales.

Shapes: B images, N texts, G segment tokens, C channels of a tower, D channels of the shared space.
"""

import dataclasses
import math
from collections.abc import Sequence
from functools import cached_property

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from groupvit import collectives
from groupvit.config import ModelConfig
from groupvit.grouping import hard_assignment
from groupvit.image_encoder import ImageEncoder, ImageFeatures, ImageNoise, Stage
from groupvit.precision import at_least_float32
from groupvit.text_encoder import TextEncoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageEncoding:
    """A batch of images in the shared space. Embeddings are not L2-normalised."""

    embedding: Tensor
    """[B,D]: embedding of the mean segment token."""
    segment_embeddings: Tensor
    """[B,G,D]: embedding of each segment token."""
    features: ImageFeatures
    """Output of the tower, before the projector."""

    @cached_property
    def soft_assignments(self) -> tuple[Tensor, ...]:
        """Noise-free softmax over groups, one [B,G_l,S_l] per grouping block."""
        return tuple(logits.softmax(dim=1) for logits in self.features.assignment_logits)

    @cached_property
    def hard_assignments(self) -> tuple[Tensor, ...]:
        """One-hot arg max over groups, one [B,G_l,S_l] per grouping block."""
        return tuple(hard_assignment(soft) for soft in self.soft_assignments)


class Projector(nn.Module):
    """Projects a tower's features into the shared space: Linear, batch norm, ReLU, Linear."""

    def __init__(self, in_width: int, hidden_width: int, out_width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(in_width, hidden_width)
        self.norm = nn.BatchNorm1d(hidden_width)
        self.out = nn.Linear(hidden_width, out_width)

    def forward(self, x: Tensor) -> Tensor:
        """[...,C] -> [...,D] float32. Batch statistics are over all leading axes."""
        return project([self], [x])[0]


def project(
    projectors: Sequence[Projector], inputs: Sequence[Tensor], group: dist.ProcessGroup | None = None
) -> list[Tensor]:
    """Apply each projector to its input: [...,C_i] -> [...,D] float32.

    Batch statistics are over all leading axes and all workers of the group, exchanged in one collective.
    """
    hidden = [projector.hidden(x).flatten(0, -2) for projector, x in zip(projectors, inputs, strict=True)]
    with torch.autocast(inputs[0].device.type, enabled=False):  # statistics over thousands of rows need float32
        hidden = batch_norm([p.norm for p in projectors], [at_least_float32(x) for x in hidden], group)
        hidden = [F.relu(x) for x in hidden]
    return [
        at_least_float32(projector.out(x)).unflatten(0, original.shape[:-1])
        for projector, x, original in zip(projectors, hidden, inputs, strict=True)
    ]


def batch_norm(
    norms: Sequence[nn.BatchNorm1d], inputs: Sequence[Tensor], group: dist.ProcessGroup | None
) -> list[Tensor]:
    """Apply each batch norm to its input [N_i,C_i], with statistics over the rows of all workers in the group.

    Every worker must have the same N_i. Each sends means and variances of its own rows. Joined, they are as exact as
    those of all rows. Works on CPUs, too. Evaluation uses the running statistics.
    """
    if group is None or not norms[0].training:
        return [norm(x) for norm, x in zip(norms, inputs, strict=True)]
    moments = [torch.stack(torch.var_mean(x, dim=0, correction=0))[None] for x in inputs]  # [1,2,C_i]
    outputs = []
    for norm, x, gathered in zip(norms, inputs, collectives.all_gather_together(moments, group), strict=True):
        assert norm.running_mean is not None and norm.running_var is not None and norm.momentum is not None
        variances, means = gathered.unbind(1)  # [W,C_i]
        mean = means.mean(dim=0)
        variance = (variances + (means - mean).square()).mean(dim=0)
        num_rows = len(x) * len(means)
        with torch.no_grad():
            norm.running_mean.lerp_(mean, norm.momentum)
            norm.running_var.lerp_(variance * (num_rows / max(num_rows - 1, 1)), norm.momentum)
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.add_(1)
        outputs.append((x - mean) * torch.rsqrt(variance + norm.eps) * norm.weight + norm.bias)
    return outputs


class GroupViT(nn.Module):
    """The two towers and their projectors into the shared space."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.image_encoder = ImageEncoder(config.image)
        self.text_encoder = TextEncoder(config.text)
        self.image_projector = Projector(config.image.width, config.projector_width, config.embedding_dim)
        self.text_projector = Projector(config.text.width, config.projector_width, config.embedding_dim)
        initial_scale = math.log(1 / config.initial_temperature)
        self.logit_scale = nn.Parameter(torch.tensor(initial_scale))
        self.multi_label_logit_scale = nn.Parameter(torch.tensor(initial_scale))

    def tower_parameters(self) -> list[nn.Parameter]:
        """Parameters of the two towers, in the order in which a training step uses them: text first."""
        return [*self.text_encoder.parameters(), *self.image_encoder.parameters()]

    def head_parameters(self) -> list[nn.Parameter]:
        """Parameters that the towers' outputs meet: the projectors' and the logit scales."""
        projectors = [*self.image_projector.parameters(), *self.text_projector.parameters()]
        return [*projectors, self.logit_scale, self.multi_label_logit_scale]

    def encode_image(self, images: Tensor, noise: ImageNoise | None = None) -> ImageEncoding:
        """Encode images [B,3,H,W], normalised, with sides that are multiples of the patch size.

        `noise`: stochastic depth and Gumbel noise, from `image_encoder.draw_noise`. None: neither.
        """
        features = self.image_encoder(images, noise)
        return ImageEncoding(
            embedding=self.image_projector(features.pooled),
            segment_embeddings=self.image_projector(features.segment_tokens),
            features=features,
        )

    def encode_text(self, token_ids: Tensor) -> Tensor:
        """Encode token ids [N,T] -> [N,D], not L2-normalised. Padding is 0; the largest id is the end token."""
        return self.text_projector(self.text_encoder(token_ids))

    def embed_image_tokens(self, tokens: Tensor) -> Tensor:
        """Embed every image token as a segment of its own, without grouping: [...,N,C] -> [...,N,D].

        This is the baseline for grouping: patch-text similarity (paper table 4, "pixel-wise"). Each token goes through
        the layers that a segment's content goes through in the grouping blocks, since training matched their output
        with texts.
        """
        for stage in self.image_encoder.stages:
            assert isinstance(stage, Stage)
            if stage.grouping is not None:
                tokens = stage.grouping.ungrouped(tokens)
        return self.image_projector(self.image_encoder.norm(tokens))
