"""The GroupViT model: image tower, text tower, their projectors, and the logit scales.

Shapes: B images, N texts, G segment tokens, C channels of a tower, D channels of the shared space.
"""

import dataclasses
import math
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groupvit.config import ModelConfig
from groupvit.grouping import hard_assignment
from groupvit.image_encoder import ImageEncoder, ImageFeatures, ImageNoise, Stage
from groupvit.precision import at_least_float32
from groupvit.text_encoder import TextEncoder

MAX_LOGIT_SCALE = 100.0
"""Upper limit of exp(logit scale), as in CLIP."""


def clamped_scale(logit_scale: Tensor) -> Tensor:
    """exp(logit_scale), at most 100."""
    return logit_scale.exp().clamp(max=MAX_LOGIT_SCALE)


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
        hidden = self.hidden_rows(x)
        with torch.autocast(x.device.type, enabled=False):
            hidden = self.norm(hidden)
        return self._outputs(hidden).unflatten(0, x.shape[:-1])

    def hidden_rows(self, x: Tensor) -> Tensor:
        """First layer: [...,C] -> [N,H], in the type that statistics over thousands of rows need: float32."""
        return at_least_float32(self.hidden(x).flatten(0, -2))

    def outputs(self, hidden: Tensor, statistics: Tensor) -> Tensor:
        """The rest, with batch statistics from elsewhere: hidden rows [N,H]; mean and variance [2,H] -> [N,D]."""
        mean, variance = statistics
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = (hidden - mean) * torch.rsqrt(variance + self.norm.eps) * self.norm.weight + self.norm.bias
        return self._outputs(hidden)

    @torch.no_grad()
    def track(self, statistics: Tensor, num_rows: int) -> None:
        """Move the running statistics towards the mean and the biased variance [2,H] of `num_rows` rows."""
        mean, variance = statistics
        norm = self.norm
        assert norm.running_mean is not None and norm.running_var is not None and norm.momentum is not None
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance * (num_rows / max(num_rows - 1, 1)), norm.momentum)
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)

    def _outputs(self, normalized: Tensor) -> Tensor:
        return at_least_float32(self.out(F.relu(normalized)))


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
