"""Configuration of the method: frozen dataclasses, and their plain-dict form for checkpoints and tracking.

Defaults are the paper's two-stage model (arXiv 2202.11094, section 4.1; numbers as released). Options that depart from
the reference say so, and say why, in the string under the field.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

Config = TypeVar("Config")
Precision = Literal["float32", "bfloat16"]
"""Which arithmetic matrix products use; see groupvit/precision.py."""
PrecisionChoice = Literal["auto", "float32", "bfloat16"]
"""What a user asks for. `auto`: bfloat16 where the device computes it natively, else float32."""
Protocol = Literal["model", "paper", "unified"]
"""How images are segmented: as suits the model, by the paper, or by later work; see groupvit/protocols.py."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageEncoderConfig:
    """The grouping vision transformer (paper section 3.1)."""

    image_size: int = 224
    """Side of the square training image, pixels."""
    patch_size: int = 16
    """Side of an image token, pixels: the stride of the stem."""
    stem: Literal["patch", "convolutional"] = "patch"
    """`patch`: one convolution with kernel = stride (the paper). `convolutional`: 3x3 convolutions of stride 2 down to
    the patch size; learns much faster on small images and small data, where a patch embedding has too few views to
    learn edges.
    """
    width: int = 384
    """Channels of every token."""
    depths: tuple[int, ...] = (6, 3, 3)
    """Transformer blocks per grouping stage."""
    num_heads: tuple[int, ...] = (6, 6, 6)
    """Attention heads per grouping stage; each divides `width`."""
    num_group_tokens: tuple[int, ...] = (64, 8, 0)
    """Group tokens per stage. 0: a stage without grouping block; only the last stage may have none."""
    num_output_groups: tuple[int, ...] = (64, 8)
    """Segment tokens each grouping block makes."""
    mlp_ratio: float = 4.0
    """Hidden width of a block's MLP over `width`."""
    token_mixing_ratio: float = 0.5
    """Hidden width of the MLPs over the token axis, over `width`."""
    assignment: Literal["hard", "soft"] = "hard"
    """`hard`: straight-through Gumbel-softmax in training (the paper). `soft`: plain softmax (the paper's ablation);
    collapses less on narrow data."""
    tau: float = 1.0
    """Temperature of the softmax over groups (the paper: 1). Smaller: segments decide for one group sooner; with hard
    assignment it shapes the gradient alone, with soft assignment also what is segmented."""
    group_residual: bool = True
    """Add the pre-assigned group tokens to what a group gathers (the paper). They have already looked at the whole
    image, so a segment can carry a noun without owning its pixels; without them only owned pixels speak, and masks
    sharpen on small data."""
    initialisation: Literal["paper", "fan_in"] = "paper"
    """`paper`: every Linear with std .02, which suits a width of 384. `fan_in`: std in_features^-0.5, halved where a
    residual branch ends; in narrow towers .02 starts assignments nearly uniform, and the loss stalls."""
    stochastic_depth: float = 0.1
    """Drop rate of the deepest block's residual branches; rises linearly from 0 over all blocks."""
    activation_checkpointing: bool = False
    """Recompute the blocks in the backward pass: less memory for about a third more time."""

    def __post_init__(self) -> None:
        num_stages = len(self.depths)
        expected = {"num_heads": num_stages, "num_group_tokens": num_stages, "num_output_groups": num_stages - 1}
        for name, length in expected.items():
            value = getattr(self, name)
            if name == "num_output_groups" and len(value) == num_stages and self.num_group_tokens[-1:] != (0,):
                continue  # the last stage groups as well
            if len(value) != length:
                raise ValueError(
                    f"image.{name}={value} has {len(value)} entries, but depths={self.depths} has {num_stages} stages: "
                    f"give {length}"
                )
        for stage, tokens in enumerate(self.num_group_tokens):
            if (tokens > 0) != (stage < len(self.num_output_groups)):
                raise ValueError(
                    f"image.num_group_tokens={self.num_group_tokens}: stage {stage} has {tokens} group tokens, but "
                    f"num_output_groups={self.num_output_groups}; only a last stage without an output may have 0"
                )
        for heads in self.num_heads:
            if heads < 1 or self.width % heads:
                raise ValueError(f"image.num_heads={self.num_heads}: {heads} does not divide image.width={self.width}")
        if self.tau <= 0:
            raise ValueError(f"image.tau={self.tau} is no temperature: give a positive number, e.g. 1.0")
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image.image_size={self.image_size} is not a multiple of image.patch_size={self.patch_size}"
            )
        if self.stem == "convolutional" and (self.patch_size < 2 or self.patch_size & (self.patch_size - 1)):
            raise ValueError(f"image.patch_size={self.patch_size}: the convolutional stem needs a power of two >= 2")

    @property
    def grid_size(self) -> int:
        """Image tokens per side of the training image."""
        return self.image_size // self.patch_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextEncoderConfig:
    """The CLIP-style causal text transformer, smaller (paper section 4.1)."""

    context_length: int = 77
    vocab_size: int = 49_408
    width: int = 256
    depth: int = 12
    num_heads: int = 4
    trim: bool = True
    """Cut a batch of texts to its longest before encoding. Exact, since attention is causal and the end token is read;
    the reference always computes 77 positions."""
    pack: bool = True
    """Put several texts in one row, kept apart by a mask, so that no padding is computed. Exact; prompts are short."""
    deduplicate: bool = True
    """Encode equal texts of a batch once. Exact, since the text tower has no noise; noun prompts repeat often."""

    def __post_init__(self) -> None:
        if self.num_heads < 1 or self.width % self.num_heads:
            raise ValueError(f"text.num_heads={self.num_heads} does not divide text.width={self.width}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Both towers, their projectors and the logit scales."""

    image: ImageEncoderConfig = dataclasses.field(default_factory=ImageEncoderConfig)
    text: TextEncoderConfig = dataclasses.field(default_factory=TextEncoderConfig)
    embedding_dim: int = 256
    """Channels of the space in which images and texts are compared."""
    projector_width: int = 4096
    """Hidden width of the two projectors."""
    initial_temperature: float = 0.07
    """Both logit scales start at ln(1 / this)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The contrastive losses (paper section 3.2; released numbers)."""

    num_prompts: int = 3
    """Noun prompts per image, K. 0: image-text contrastive loss only."""
    multi_label_weight: float = 1.0
    """Weight of the multi-label contrastive loss in the sum."""
    shared_positives: bool = False
    """Count every prompt of the global batch with the same noun as a positive. Off in the paper (a noun of two images
    is a negative); needed where a batch repeats nouns, or the loss fights itself and stalls."""
    multi_label_match: Literal["image", "segments", "mixture"] = "image"
    """What a prompt is compared with. `image`: the image embedding (the paper). `segments`: the best of the image's
    segments (a smooth maximum over segment embeddings), which teaches each segment one noun instead of their mean all
    of them. `mixture`: each segment names one noun, and the image's nouns are their mixture, weighted by the pixels the
    segments own, so that a noun must be found where it is; equal nouns share their positives."""

    def __post_init__(self) -> None:
        if self.num_prompts < 0:
            raise ValueError(f"loss.num_prompts={self.num_prompts} is negative: give 0 for no multi-label loss")

    @property
    def looks_at_segments(self) -> bool:
        """Whether a loss compares segments with prompts; without prompts none does."""
        return self.num_prompts > 0 and self.multi_label_match != "image"


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and its schedule (section 7 of the released recipe)."""

    learning_rate: float = 1.6e-3
    """Peak rate at `reference_batch_size`; the rates are scaled linearly with the global batch size."""
    warmup_learning_rate: float = 4e-6
    min_learning_rate: float = 4e-5
    reference_batch_size: int = 4096
    warmup_steps: int = 0
    """Optimiser steps of linear warm-up, which overrides the first part of the (unshifted) cosine."""
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip_grad_norm: float | None = 5.0
    """Largest L2 norm of the gradient; None: not clipped."""
    decay_logit_scales: bool = False
    """The reference decays the two logit scales by oversight (they are 0-D, its rule spares 1-D); decaying a
    temperature pulls it towards 1, so ours does not."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentationConfig:
    """How an image becomes a label per pixel. The defaults are the paper's protocol for PASCAL VOC."""

    short_side: int | None = 448
    """The image is resized to this short side, keeping its ratio; None leaves its size as it is."""
    max_long_side: int = 2048
    """The resize stops earlier where the long side would grow beyond this."""
    window: int | None = 448
    """Side of the sliding window whose scores are averaged; None segments the whole image at once."""
    stride: int = 224
    """Distance between windows."""
    templates: tuple[str, ...] = ("a photo of a {}.",)
    """Prompt templates; a class embedding is the mean over them."""
    background_threshold: float | None = 0.95
    """Pixels whose best class scores less are background. None: there is no background class."""
    background_rule: Literal["below_threshold", "constant"] = "below_threshold"
    """below_threshold: in each window, but for its most certain group (the paper). constant: the background is a class
    whose score is the threshold everywhere (the unified protocol)."""
    background_prompts: tuple[str, ...] = ()
    """Words for the background (like "sky"): they compete as classes and count as background where they win."""
    top_classes: int | None = 5
    """Only this many classes, the best ones for the whole window, can appear in it; the affinity is the softmax over
    all classes times the one over these. None: all can, and the affinity is the softmax over all classes."""
    logit_scale: Literal["image_text", "multi_label"] = "image_text"
    """Which of the model's scales multiplies the cosines. `multi_label` suits models whose nouns were matched with
    segments in training: it is what those segments were scored by."""
    masks: Literal["hard", "soft"] = "hard"
    """hard: a pixel belongs to its best group alone. soft: its scores are the mean over groups by its assignment."""
    grouping: bool = True
    """False compares each image token with the classes and ignores the groups: a baseline that shows what they add."""
    scales: tuple[float, ...] = (1.0,)
    """Scores are averaged over the image resized by each of these, relative to `short_side`."""
    flip: bool = False
    """Whether scores are also averaged with those of the mirrored image."""
    antialias: bool = False
    """Whether an image that is made smaller is averaged over the pixels that fall together. The published numbers were
    measured without (plain bilinear); models for small images see less noise with it."""
    pamr_iterations: int | None = None
    """Rounds of pixel-adaptive mask refinement: masks are averaged with those of neighbours of like colour (Araslanov
    & Roth, CVPR 2020; `unified` with PAMR: 10). None: masks stay as they are."""

    def __post_init__(self) -> None:
        if self.window is not None and not 0 < self.stride <= self.window:
            raise ValueError(
                f"stride {self.stride} must be between 1 and the window of {self.window}, or pixels are skipped"
            )
        if self.background_threshold is None and self.background_prompts:
            raise ValueError(
                "background_prompts need a background class: set background_threshold (0.0 adds nothing to them)"
            )
        if self.top_classes is not None and self.top_classes < 1:
            raise ValueError(f"top_classes is {self.top_classes}: at least 1, or None for all classes")
        if self.pamr_iterations is not None and self.pamr_iterations < 1:
            raise ValueError(f"pamr_iterations is {self.pamr_iterations}: at least 1, or None for no refinement")
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"scales are {self.scales}: one or more positive numbers are needed")


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON-safe types (tuples as lists); the inverse of `from_dict`."""
    return {
        key: [_plain(item) for item in value] if isinstance(value, tuple) else _plain(value)
        for key, value in ((field.name, getattr(config, field.name)) for field in dataclasses.fields(config))
    }


def from_dict(config_type: type[Config], values: dict[str, Any]) -> Config:
    """A config from `to_dict`'s result. ValueError on an unknown field: it was written by a newer version."""
    hints = get_type_hints(config_type)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ValueError(
            f"{config_type.__name__} has no field {', '.join(unknown)}: written by a newer version? upgrade groupvit"
        )
    return config_type(**{key: _typed(hints[key], value) for key, value in values.items()})


def _plain(value: Any) -> Any:
    return to_dict(value) if dataclasses.is_dataclass(value) else value


def _typed(hint: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, dict):
        return from_dict(hint, value)
    if get_origin(hint) is tuple and isinstance(value, list):
        inner = get_args(hint)[0]
        return tuple(_typed(inner, item) for item in value)
    return value


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat
