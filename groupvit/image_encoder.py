"""The image tower: image tokens, then stages of transformer blocks and grouping (paper section 3.1).

Shapes: B images of H x W pixels, N image tokens, S input segments and G output groups of a stage, M group tokens, C
channels.
"""

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from groupvit.config import ImageEncoderConfig
from groupvit.grouping import GroupingBlock, TokenMixing, gumbel_noise
from groupvit.noise import Uniform
from groupvit.precision import at_least_float32
from groupvit.transformer import Block


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageFeatures:
    """Output of the image tower for a batch, before the projector."""

    pooled: Tensor
    """[B,C]: mean of the segment tokens."""
    segment_tokens: Tensor
    """[B,G,C] after the final norm; the image tokens if there is no grouping."""
    image_tokens: Tensor
    """[B,N,C]: input of the first grouping block or, if there is none, of the final norm."""
    assignment_logits: tuple[Tensor, ...]
    """Noise-free, one [B,G_l,S_l] float32 per grouping block."""
    grid: tuple[int, int]
    """Rows and columns of image tokens; N = rows * columns."""

    def to_float32(self) -> "ImageFeatures":
        """Convert all tokens to float32, from any precision."""
        tokens = (self.pooled, self.segment_tokens, self.image_tokens)
        pooled, segment_tokens, image_tokens = (at_least_float32(tensor) for tensor in tokens)
        return dataclasses.replace(self, pooled=pooled, segment_tokens=segment_tokens, image_tokens=image_tokens)

    @property
    def segment_masses(self) -> Tensor:
        """[B,G] float32: share of the image tokens in each final segment, by the noise-free soft assignments."""
        owned = self.assignment_logits[0].softmax(dim=1).mean(dim=2)
        for logits in self.assignment_logits[1:]:
            owned = (logits.softmax(dim=1) @ owned[..., None]).squeeze(-1)
        return owned


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageNoise:
    """The random numbers of one pass of the image tower in training. They are drawn before it."""

    keeps: Tensor | None
    """Stochastic depth, float32 [blocks,2,B,1,1]: a factor per residual branch and image, as in `Block`. None: off."""
    gumbel: tuple[Tensor, ...]
    """Gumbel noise, one float32 [B,G_l,S_l] per grouping block. Empty for soft assignment."""


class PatchStem(nn.Module):
    """One convolution with kernel = stride: images [B,3,H,W] -> tokens [B,N,C]."""

    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.convolution = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        # A matrix product over unfolded patches gives the same sums, several times faster on CPUs than the convolution.
        batch, channels, height, width = images.shape
        size = self.patch_size
        patches = images.reshape(batch, channels, height // size, size, width // size, size)
        patches = patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * size * size)
        return F.linear(patches, self.convolution.weight.flatten(1), self.convolution.bias)


class ConvolutionalStem(nn.Module):
    """3x3 convolutions of stride 2, each of which halves the image, then a 1x1: images [B,3,H,W] -> tokens [B,N,C]."""

    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__()
        num_halvings = patch_size.bit_length() - 1
        layers: list[nn.Module] = []
        channels = 3
        for level in range(num_halvings):
            wider = max(width >> (num_halvings - 1 - level), 16)
            layers += [nn.Conv2d(channels, wider, 3, stride=2, padding=1), nn.GroupNorm(1, wider), nn.GELU()]
            channels = wider
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, width, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).flatten(2).transpose(1, 2)


class Stage(nn.Module):
    """Transformer blocks over [segments ; group tokens], then a grouping block if the stage has group tokens."""

    def __init__(self, config: ImageEncoderConfig, stage: int) -> None:
        super().__init__()
        width = config.width
        num_heads, num_tokens = config.num_heads[stage], config.num_group_tokens[stage]
        previous = config.num_group_tokens[stage - 1] if stage > 0 else 0
        hidden = int(width * config.token_mixing_ratio)
        self.blocks = nn.ModuleList(
            Block(width, num_heads, mlp_ratio=config.mlp_ratio) for _ in range(config.depths[stage])
        )
        self.activation_checkpointing = config.activation_checkpointing
        self.group_tokens: nn.Parameter | None = None
        self.group_projector: nn.Sequential | None = None
        self.grouping: GroupingBlock | None = None
        if num_tokens > 0:
            self.group_tokens = nn.Parameter(torch.zeros(1, num_tokens, width))
            if previous > 0:
                # The projector's output is added to these tokens, so they start at zero, unlike the first stage's.
                self.group_projector = nn.Sequential(nn.LayerNorm(width), TokenMixing(previous, hidden, num_tokens))
            else:
                nn.init.trunc_normal_(self.group_tokens, std=0.02)
            self.grouping = GroupingBlock(
                width,
                num_heads,
                num_tokens,
                config.num_output_groups[stage],
                mlp_ratio=config.mlp_ratio,
                token_mixing_ratio=config.token_mixing_ratio,
                hard=config.assignment == "hard",
                tau=config.tau,
                residual=config.group_residual,
            )

    def forward(
        self,
        segments: Tensor,
        previous_group_tokens: Tensor | None,
        keeps: Sequence[Tensor | None],
        gumbel: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Segments [B,S,C] -> output segments [B,G,C], segments before grouping [B,S,C], group tokens [B,M,C], logits
        [B,G,S].

        Without a grouping block the last two are None, and the output segments are those before grouping.
        """
        batch, num_segments, _ = segments.shape
        x = segments
        if self.group_tokens is not None:
            group_tokens = self.group_tokens.expand(batch, -1, -1)
            if self.group_projector is not None:
                assert previous_group_tokens is not None
                group_tokens = group_tokens + self.group_projector(previous_group_tokens)
            x = torch.cat([x, group_tokens.to(x.dtype)], dim=1)
        for block, keep in zip(self.blocks, keeps, strict=True):
            if self.activation_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, keep, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, keep)
        if self.grouping is None:
            return x, x, None, None
        segments, group_tokens = x[:, :num_segments], x[:, num_segments:]
        grouped, logits = self.grouping(segments, group_tokens, gumbel)
        return grouped, segments, group_tokens, logits


class ImageEncoder(nn.Module):
    """The grouping vision transformer."""

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        self.config = config
        stem = PatchStem if config.stem == "patch" else ConvolutionalStem
        self.stem = stem(config.width, config.patch_size)
        self.stem_norm = nn.LayerNorm(config.width)
        self.positions = nn.Parameter(torch.zeros(1, config.grid_size**2, config.width))
        nn.init.trunc_normal_(self.positions, std=0.02)
        self.stages = nn.ModuleList(Stage(config, stage) for stage in range(len(config.depths)))
        self.norm = nn.LayerNorm(config.width)
        num_blocks = sum(config.depths)
        rates = [1 - config.stochastic_depth * index / max(num_blocks - 1, 1) for index in range(num_blocks)]
        self.keep_rates: Tensor
        self.register_buffer("keep_rates", torch.tensor(rates), persistent=False)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                std = 0.02
                if config.initialisation == "fan_in":
                    std = module.in_features**-0.5 * (0.5 if name.endswith(("attention.out", "mlp.out")) else 1.0)
                nn.init.trunc_normal_(module.weight, std=std)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor, noise: ImageNoise | None = None) -> ImageFeatures:
        """Encode images [B,3,H,W], normalised. ValueError if a side is not a multiple of the patch size.

        `noise` comes from `draw_noise`. None: no stochastic depth, and no Gumbel noise.
        Positions are resized bicubically if the grid differs from that of the training image.
        """
        height, width = images.shape[-2:]
        size = self.config.patch_size
        if height % size or width % size:
            raise ValueError(
                f"image of {height} x {width} pixels: both sides must be multiples of the patch size {size}"
            )
        grid = (height // size, width // size)
        return self.encode_tokens(self.stem_norm(self.stem(images)) + self._resized_positions(grid), grid, noise)

    def encode_tokens(self, x: Tensor, grid: tuple[int, int], noise: ImageNoise | None = None) -> ImageFeatures:
        """Encode image tokens [B,N,C] with positions added; grid: (rows, columns). `noise` as in `forward`."""
        keeps: list[Tensor | None] = [None] * sum(self.config.depths)
        if noise is not None and noise.keeps is not None:
            keeps = list(noise.keeps)
        gumbel = () if noise is None else noise.gumbel
        image_tokens: Tensor | None = None
        group_tokens: Tensor | None = None
        assignment_logits: list[Tensor] = []
        for stage, depth in zip(self.stages, self.config.depths, strict=True):
            drawn = gumbel[len(assignment_logits)] if len(assignment_logits) < len(gumbel) else None
            x, before_grouping, group_tokens, logits = stage(x, group_tokens, keeps[:depth], drawn)
            keeps = keeps[depth:]
            image_tokens = before_grouping if image_tokens is None else image_tokens
            if logits is not None:
                assignment_logits.append(logits)
        assert image_tokens is not None
        segment_tokens = self.norm(x)
        return ImageFeatures(
            pooled=segment_tokens.mean(dim=1),
            segment_tokens=segment_tokens,
            image_tokens=image_tokens,
            assignment_logits=tuple(assignment_logits),
            grid=grid,
        )

    def draw_noise(self, batch: int, grid: tuple[int, int], uniform: Uniform) -> ImageNoise:
        """Draw the noise for `batch` images of (rows, columns) tokens: first stochastic depth, then Gumbel noise."""
        keeps = None
        if self.config.stochastic_depth > 0:
            keep_rates = self.keep_rates[:, None, None, None, None]
            keeps = (uniform((len(keep_rates), 2, batch, 1, 1)) < keep_rates) / keep_rates
        gumbel: list[Tensor] = []
        num_segments = grid[0] * grid[1]
        if self.config.assignment == "hard":
            for num_groups in self.config.num_output_groups:
                gumbel.append(gumbel_noise(uniform((batch, num_groups, num_segments))))
                num_segments = num_groups
        return ImageNoise(keeps=keeps, gumbel=tuple(gumbel))

    def _resized_positions(self, grid: tuple[int, int]) -> Tensor:
        side = self.config.grid_size
        if grid == (side, side):
            return self.positions
        table = self.positions.reshape(1, side, side, -1).permute(0, 3, 1, 2)
        table = F.interpolate(table.float(), size=grid, mode="bicubic", align_corners=False)
        return table.flatten(2).transpose(1, 2)
