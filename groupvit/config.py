"""Configuration of the method: frozen dataclasses, and their conversion to plain dicts for checkpoints and tracking.

The defaults are the paper's two-stage model (arXiv 2202.11094, section 4.1) with the numbers of the released code. The
string under a field says if the option differs from the reference, and why.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from groupvit.field_types import check_type

Config = TypeVar("Config")
Precision = Literal["float32", "tf32", "bfloat16"]
"""Number format of matrix products; see groupvit/precision.py."""
ReducePrecision = Literal["exact", "float32", "bfloat16"]
"""Number format in which workers send each other gradients; see groupvit/gradients.py."""
PrecisionChoice = Literal["auto", "float32", "tf32", "bfloat16"]
"""What a user can choose. `auto`: bfloat16 if the device supports it natively, else float32."""
Protocol = Literal["model", "paper", "unified"]
"""Segmentation settings: those that suit the model, the paper's, or those of later work; see groupvit/protocols.py."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageEncoderConfig:
    """The grouping vision transformer (paper section 3.1)."""

    image_size: int = 224
    """Side of the square training image in pixels."""
    patch_size: int = 16
    """Side of an image token in pixels: the stride of the stem."""
    stem: Literal["patch", "convolutional"] = "patch"
    """`patch`: one convolution with kernel = stride (the paper). `convolutional`: 3x3 convolutions of stride 2 down to
    the patch size. It learns much faster on small images and small data, where a patch embedding sees too few examples
    to learn edges.
    """
    width: int = 384
    """Number of channels of every token."""
    depths: tuple[int, ...] = (6, 3, 3)
    """Number of transformer blocks per grouping stage."""
    num_heads: tuple[int, ...] = (6, 6, 6)
    """Number of attention heads per grouping stage. Each must divide `width`."""
    num_group_tokens: tuple[int, ...] = (64, 8, 0)
    """Number of group tokens per stage. 0: no grouping block; allowed for the last stage only."""
    num_output_groups: tuple[int, ...] = (64, 8)
    """Number of segment tokens that each grouping block returns."""
    mlp_ratio: float = 4.0
    """Hidden width of a block's MLP, divided by `width`."""
    token_mixing_ratio: float = 0.5
    """Hidden width of the MLPs over the token axis, divided by `width`."""
    assignment: Literal["hard", "soft"] = "hard"
    """`hard`: straight-through Gumbel-softmax in training (the paper). `soft`: plain softmax (the paper's ablation),
    which collapses less often on data with little variety."""
    tau: float = 1.0
    """Temperature of the softmax over groups (the paper: 1). A smaller value makes assignments sharper. With hard
    assignment it changes only the gradient, with soft assignment also the segments."""
    group_residual: bool = True
    """Whether to add the pre-assigned group tokens to the mean of a group's segments (the paper). These tokens have
    attended to the whole image, so a segment can match a noun without owning its pixels. Without them only owned pixels
    count, which makes masks sharper on small data."""
    initialisation: Literal["paper", "fan_in"] = "paper"
    """`paper`: std 0.02 for every Linear, which suits a width of 384. `fan_in`: std in_features^-0.5, halved at the end
    of residual branches. In narrow towers, 0.02 makes initial assignments nearly uniform, and the loss stalls."""
    stochastic_depth: float = 0.1
    """Drop rate of the residual branches of the last block. The rate rises linearly from 0 at the first block."""
    activation_checkpointing: bool = False
    """Whether to recompute blocks in the backward pass, which saves memory and takes about a third more time."""

    def __post_init__(self) -> None:
        num_stages = len(self.depths)
        expected = {"num_heads": num_stages, "num_group_tokens": num_stages, "num_output_groups": num_stages - 1}
        for name, length in expected.items():
            value = getattr(self, name)
            if name == "num_output_groups" and len(value) == num_stages and self.num_group_tokens[-1:] != (0,):
                continue  # the last stage has a grouping block, too
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
            raise ValueError(f"image.tau={self.tau} is not a valid temperature: give a positive number, e.g. 1.0")
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image.image_size={self.image_size} is not a multiple of image.patch_size={self.patch_size}"
            )
        if self.stem == "convolutional" and (self.patch_size < 2 or self.patch_size & (self.patch_size - 1)):
            raise ValueError(f"image.patch_size={self.patch_size}: the convolutional stem needs a power of two >= 2")

    @property
    def grid_size(self) -> int:
        """Number of image tokens per side of the training image."""
        return self.image_size // self.patch_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextEncoderConfig:
    """The causal text transformer: CLIP's, but smaller (paper section 4.1)."""

    context_length: int = 77
    vocab_size: int = 49_408
    width: int = 256
    depth: int = 12
    num_heads: int = 4
    trim: bool = True
    """Whether to cut a batch of texts to the length of its longest text. The result is the same, since attention is
    causal and the end token is read; the reference always computes 77 positions."""
    pack: bool = True
    """Whether to put several short texts into one row, kept apart by a mask, to compute no padding. The result is the
    same."""
    deduplicate: bool = True
    """Whether to encode equal texts of a batch once; noun prompts repeat often. The result is the same, since the text
    tower has no noise."""

    def __post_init__(self) -> None:
        if self.num_heads < 1 or self.width % self.num_heads:
            raise ValueError(f"text.num_heads={self.num_heads} does not divide text.width={self.width}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Both towers, their projectors and the logit scales."""

    image: ImageEncoderConfig = dataclasses.field(default_factory=ImageEncoderConfig)
    text: TextEncoderConfig = dataclasses.field(default_factory=TextEncoderConfig)
    embedding_dim: int = 256
    """Number of channels of the shared space, in which images and texts are compared."""
    projector_width: int = 4096
    """Hidden width of the two projectors."""
    initial_temperature: float = 0.07
    """Initial temperature of both losses: both logit scales start at ln(1 / initial_temperature)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The contrastive losses (paper section 3.2; released numbers)."""

    num_prompts: int = 3
    """Noun prompts per image, K. 0: image-text contrastive loss only."""
    multi_label_weight: float = 1.0
    """Weight of the multi-label contrastive loss in the sum."""
    shared_positives: bool = False
    """Whether all prompts of the global batch with the same noun are positives. Off in the paper, where the same noun
    of another image is a negative. Turn it on if batches repeat nouns: else the loss contradicts itself and stalls."""
    multi_label_match: Literal["image", "segments", "mixture"] = "image"
    """What a prompt is compared with. `image`: the image embedding (the paper). `segments`: the image's best segment (a
    smooth maximum over segment embeddings), so that each segment learns one noun instead of their mean learning all of
    them. `mixture`: each segment predicts one noun, and the image's nouns are the mean of these predictions, weighted
    by the pixels of each segment, so that the noun's own pixels must predict it. Equal nouns share their positives."""

    def __post_init__(self) -> None:
        if self.num_prompts < 0:
            raise ValueError(f"loss.num_prompts={self.num_prompts} is negative: give 0 for no multi-label loss")

    @property
    def looks_at_segments(self) -> bool:
        """Whether the loss compares segments with prompts. False without prompts."""
        return self.num_prompts > 0 and self.multi_label_match != "image"

    @property
    def shares_positives(self) -> bool:
        """Whether the loss must know which prompts have the same noun. False without prompts."""
        return self.num_prompts > 0 and (self.shared_positives or self.multi_label_match == "mixture")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and its schedule (section 7 of the released recipe)."""

    learning_rate: float = 1.6e-3
    """Peak rate at `reference_batch_size`. All rates are scaled linearly with the global batch size."""
    warmup_learning_rate: float = 4e-6
    min_learning_rate: float = 4e-5
    reference_batch_size: int = 4096
    warmup_steps: int = 0
    """Number of optimiser steps of linear warm-up. It replaces the first part of the cosine and does not shift it."""
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip_grad_norm: float | None = 5.0
    """Largest L2 norm of the gradient. None: no clipping."""
    decay_logit_scales: bool = False
    """Whether weight decay applies to the two logit scales. The reference does so by mistake: its rule exempts 1-D
    parameters, and these are 0-D. Decay would pull a temperature towards 1."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentationConfig:
    """How an image is segmented. The defaults are the paper's protocol for PASCAL VOC."""

    short_side: int | None = 448
    """Short side in pixels that the image is resized to, keeping its aspect ratio. None: not resized."""
    max_long_side: int = 2048
    """Largest long side in pixels. The image is resized to less than `short_side` if its long side would be larger."""
    window: int | None = 448
    """Side of the sliding windows in pixels; their scores are averaged. None: the whole image is one window."""
    stride: int = 224
    """Distance between windows in pixels."""
    templates: tuple[str, ...] = ("a photo of a {}.",)
    """Prompt templates. A class embedding is the mean over them."""
    background_threshold: float | None = 0.95
    """Pixels whose best class score is lower are background. None: there is no background class."""
    background_rule: Literal["below_threshold", "constant"] = "below_threshold"
    """`below_threshold`: each window applies the threshold to all groups but its most certain one (the paper).
    `constant`: the background is a class whose score is the threshold everywhere (the unified protocol)."""
    background_prompts: tuple[str, ...] = ()
    """Words for the background, like "sky". Each competes as a class; pixels it wins are background."""
    top_classes: int | None = 5
    """Number of classes that can appear in a window: the best ones for the window as a whole. The affinity is the
    softmax over all classes times the softmax over these. None: all classes, and the first softmax alone."""
    logit_scale: Literal["image_text", "multi_label"] = "image_text"
    """Which of the model's logit scales multiplies the cosine similarities. `multi_label` suits models trained with
    `multi_label_match` `segments` or `mixture`, since training scored their segments with it."""
    masks: Literal["hard", "soft"] = "hard"
    """`hard`: a pixel has the scores of its best group. `soft`: the mean over groups, weighted by its assignment."""
    grouping: bool = True
    """Whether to use the groups. False compares each image token with the classes: a baseline without grouping."""
    scales: tuple[float, ...] = (1.0,)
    """Factors of `short_side`. Scores are averaged over the image resized by each of them."""
    flip: bool = False
    """Whether to average scores with those of the mirrored image."""
    antialias: bool = False
    """Whether to use antialiasing when an image is made smaller. The published numbers were measured without it
    (plain bilinear). It reduces noise for models with small images."""
    pamr_iterations: int | None = None
    """Number of iterations of pixel-adaptive mask refinement, which averages masks over neighbours of similar colour
    (PAMR: Araslanov & Roth, CVPR 2020; 10 in the unified protocol with PAMR). None: no refinement."""

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
    """Convert a config to plain JSON-safe types, with lists for tuples. The inverse of `from_dict`."""
    return {
        key: [_plain(item) for item in value] if isinstance(value, tuple) else _plain(value)
        for key, value in ((field.name, getattr(config, field.name)) for field in dataclasses.fields(config))
    }


def from_dict(config_type: type[Config], values: dict[str, Any]) -> Config:
    """Make a config from the result of `to_dict`, read from a file. TypeError on a value of another type than its
    field's, ValueError on an unknown field: a newer version wrote it."""
    hints = get_type_hints(config_type)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ValueError(
            f"{config_type.__name__} has no field {', '.join(unknown)}: written by a newer version? upgrade groupvit"
        )
    for key, value in values.items():
        check_type(hints[key], value, f"{config_type.__name__}.{key}")
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
    """Flatten nested dicts into one with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat
