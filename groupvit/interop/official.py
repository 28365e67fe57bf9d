"""Converts weights from and to the released checkpoints and Hugging Face's `GroupViTModel`.

This uses only the names and shapes of their tensors; `weight_names` has the table of names.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from groupvit.checkpoint import check_finite, check_tensors
from groupvit.config import ImageEncoderConfig, ModelConfig, TextEncoderConfig
from groupvit.interop.weight_names import name_rows
from groupvit.model import GroupViT

_IF_NOT_FINITE = "fetch the weights again, or take those of an earlier step"


def from_official(
    state_dict: Mapping[str, Tensor], num_heads: tuple[int, ...] | None = None, image_size: int | None = None
) -> GroupViT:
    """Make a model with the weights of a released checkpoint, in evaluation mode, on the CPU.

    Depths, group tokens, outputs, widths, vocabulary, context and patch size follow from the shapes; text heads have 64
    channels. If `multi_label_logit_scale` is missing (a model trained without prompts), `logit_scale` is used for it.

    Args:
        state_dict: Tensors with the names and shapes of the released checkpoints' `model` entry.
        num_heads: Number of attention heads per stage of the image encoder, which shapes do not show. None: 64 channels
            per head.
        image_size: Side of the training image in pixels. None: the size that the position table is for.

    Raises:
        ValueError: A tensor is missing, unknown or not finite, or its shape does not fit the others.
    """
    if any(name.startswith("vision_model.") for name in state_dict):
        raise ValueError("these are Hugging Face's names: their config.json is needed as well, so give its folder")
    check_finite(state_dict, source="state dict", advice=_IF_NOT_FINITE)
    try:
        config = _official_config(state_dict, num_heads, image_size)
    except KeyError as error:
        raise ValueError(f"not a GroupViT state dict: it lacks {error.args[0]}") from None
    except (TypeError, IndexError):  # a shape with another number of axes than ours
        raise ValueError("not a GroupViT state dict: some tensors have too few or too many axes") from None
    renamed = {row.official: row.ours for row in name_rows(config)}
    weights = {renamed.get(name, name): tensor for name, tensor in state_dict.items()}
    return _filled(config, weights, source="state dict")


def from_hugging_face(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> GroupViT:
    """Make a model with the weights of `transformers.GroupViTModel`, in evaluation mode, on the CPU.

    Hugging Face's model has no multi-label logit scale, so `logit_scale` is used for it.

    Args:
        state_dict: `hf_model.state_dict()`.
        config: `hf_model.config.to_dict()`.

    Raises:
        ValueError: A tensor is missing, unknown or not finite, or does not fit the config.
    """
    ours = _config_from_hugging_face(config)
    check_finite(state_dict, source="Hugging Face state dict", advice=_IF_NOT_FINITE)
    _check_config_is_plausible(ours, len(state_dict))
    # Older versions of transformers saved this buffer of consecutive numbers with the weights.
    remaining = {name: tensor for name, tensor in state_dict.items() if not name.endswith(".position_ids")}
    weights: dict[str, Tensor] = {}
    for row in name_rows(ours):
        parts = [remaining.pop(name) for name in row.hugging_face if name in remaining]
        if parts and len(parts) == len(row.hugging_face):
            weights[row.ours] = torch.cat(parts) if len(parts) > 1 else parts[0]
    return _filled(ours, weights | remaining, source="Hugging Face state dict")


def to_official(model: GroupViT) -> dict[str, Tensor]:
    """Copy the weights, with the names and shapes of the released checkpoints' `model` entry. `from_official` with the
    same `num_heads` is the inverse.

    Raises:
        ValueError: The model uses an option that the released checkpoints do not have.
    """
    text = model.config.text
    _check_options(model.config, "in the released checkpoints")
    if text.num_heads != max(text.width // 64, 1):
        raise ValueError(f"text.num_heads={text.num_heads}: the released checkpoints' text heads are 64 channels wide")
    weights = model.state_dict()
    exported = {row.official: weights[row.ours].cpu().clone() for row in name_rows(model.config)}
    for projector in ("img_projector", "text_projector"):
        for layer in ("linear_hidden.0", "linear_out"):  # 1x1 convolutions there
            exported[f"{projector}.{layer}.weight"] = exported[f"{projector}.{layer}.weight"][..., None]
    return exported


def to_hugging_face(model: GroupViT) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Make the arguments of `transformers.GroupViTConfig` and a state dict for `transformers.GroupViTModel(config)`.

    The multi-label logit scale is omitted: Hugging Face's model has none. The tensors are copies.

    Raises:
        ValueError: The model uses an option that Hugging Face's model does not have.
    """
    config, weights = _config_to_hugging_face(model.config), model.state_dict()
    exported: dict[str, Tensor] = {}
    for row in name_rows(model.config):
        tensor, names = weights[row.ours], row.hugging_face
        parts = tensor.chunk(len(names)) if len(names) > 1 else [tensor][: len(names)]
        exported |= {name: part.cpu().clone() for name, part in zip(names, parts, strict=True)}
    return config, exported


def _filled(config: ModelConfig, weights: dict[str, Tensor], *, source: str) -> GroupViT:
    """Make a model with these weights. 1x1 convolutions are squeezed to matrices."""
    with torch.device("meta"):  # allocates no memory before the tensors are checked
        expected = GroupViT(config).state_dict()
    if "logit_scale" in weights:
        weights.setdefault("multi_label_logit_scale", weights["logit_scale"])
    for name, tensor in weights.items():
        if name in expected and tensor.ndim == expected[name].ndim + 1 and tensor.shape[-1] == 1:
            weights[name] = tensor.squeeze(-1)
    check_tensors(weights, expected, source=source)
    model = GroupViT(config)
    model.load_state_dict(weights)
    return model.eval()


def _official_config(
    state_dict: Mapping[str, Tensor], num_heads: tuple[int, ...] | None, image_size: int | None
) -> ModelConfig:
    shapes = {name: tensor.shape for name, tensor in state_dict.items()}
    num_stages = _count(shapes, r"img_encoder\.layers\.(\d+)\.")
    width, _, patch_size, _ = shapes["img_encoder.patch_embed.proj.weight"]
    if num_heads is None:
        if width % 64:
            raise ValueError(f"the width of {width} is not a multiple of 64 channels per head: give num_heads")
        num_heads = (width // 64,) * num_stages
    if len(num_heads) != num_stages:
        raise ValueError(
            f"num_heads={num_heads} has {len(num_heads)} entries for {num_stages} stages: give one per stage"
        )
    num_tokens = shapes["img_encoder.pos_embed"][1]
    fitting = math.isqrt(num_tokens) * patch_size
    image_size = fitting if image_size is None else image_size
    if num_tokens != (image_size // patch_size) ** 2:
        raise ValueError(f"image_size={image_size} does not fit the {num_tokens} positions: give {fitting}")
    stages = [f"img_encoder.layers.{stage}" for stage in range(num_stages)]
    grouping = [stage for stage in stages if f"{stage}.group_token" in shapes]
    mixing = [f"{stage}.downsample.mlp_inter" for stage in grouping]
    vocab_size, text_width = shapes["text_encoder.token_embedding.weight"]
    return ModelConfig(
        image=ImageEncoderConfig(
            image_size=image_size,
            patch_size=patch_size,
            width=width,
            depths=tuple(_count(shapes, rf"{re.escape(stage)}\.blocks\.(\d+)\.") for stage in stages),
            num_heads=num_heads,
            num_group_tokens=tuple(shapes[f"{s}.group_token"][1] if s in grouping else 0 for s in stages),
            num_output_groups=tuple(shapes[f"{mlp}.fc2.weight"][0] for mlp in mixing),
            mlp_ratio=shapes["img_encoder.layers.0.blocks.0.mlp.fc1.weight"][0] / width,
            token_mixing_ratio=shapes[f"{mixing[0]}.fc1.weight"][0] / width if mixing else 0.5,
        ),
        text=TextEncoderConfig(
            context_length=shapes["text_encoder.positional_embedding"][0],
            vocab_size=vocab_size,
            width=text_width,
            depth=_count(shapes, r"text_encoder\.transformer\.resblocks\.(\d+)\."),
            num_heads=max(text_width // 64, 1),
        ),
        embedding_dim=shapes["img_projector.linear_out.weight"][0],
        projector_width=shapes["img_projector.linear_hidden.0.weight"][0],
    )


def _count(names: Mapping[str, Any], pattern: str) -> int:
    """Number of different indices that the pattern's group matches at the start of the names."""
    return len({match.group(1) for match in (re.match(pattern, name) for name in names) if match})


def _config_from_hugging_face(config: Mapping[str, Any]) -> ModelConfig:
    try:
        vision, text = config["vision_config"], config["text_config"]
        for name, given, needed in (
            ("vision_config.hidden_act", vision.get("hidden_act", "gelu"), "gelu"),
            ("text_config.hidden_act", text.get("hidden_act", "quick_gelu"), "quick_gelu"),
            ("vision_config.layer_norm_eps", vision.get("layer_norm_eps", 1e-5), 1e-5),
            ("text_config.layer_norm_eps", text.get("layer_norm_eps", 1e-5), 1e-5),
            ("vision_config.assign_eps", vision.get("assign_eps", 1.0), 1.0),
        ):
            if given != needed:
                raise ValueError(f"Hugging Face config: {name}={given!r} has no counterpart here, only {needed!r} has")
        depths, group_tokens = tuple(vision["depths"]), tuple(vision["num_group_tokens"])
        mixing_ratio, mlp_ratio = vision["assign_mlp_ratio"]
        return ModelConfig(
            image=ImageEncoderConfig(
                image_size=vision["image_size"],
                patch_size=vision["patch_size"],
                width=vision["hidden_size"],
                depths=depths,
                num_heads=(vision["num_attention_heads"],) * len(depths),
                num_group_tokens=group_tokens,
                num_output_groups=tuple(vision["num_output_groups"][: sum(tokens > 0 for tokens in group_tokens)]),
                mlp_ratio=mlp_ratio,
                token_mixing_ratio=mixing_ratio,
            ),
            text=TextEncoderConfig(
                context_length=text["max_position_embeddings"],
                vocab_size=text["vocab_size"],
                width=text["hidden_size"],
                depth=text["num_hidden_layers"],
                num_heads=text["num_attention_heads"],
            ),
            embedding_dim=config["projection_dim"],
            projector_width=config["projection_intermediate_dim"],
        )
    except KeyError as error:
        raise ValueError(f"not the config of a Hugging Face GroupViTModel: it lacks {error.args[0]}") from None
    except (TypeError, AttributeError, ZeroDivisionError) as error:  # for example, text instead of a number
        raise ValueError(f"not the config of a Hugging Face GroupViTModel: {error}") from None


def _check_config_is_plausible(config: ModelConfig, num_tensors: int) -> None:
    """Raise ValueError for a config from a file whose sizes are absurd, before a model is made of it."""
    depth = sum(config.image.depths) + config.text.depth
    if depth > num_tensors:
        raise ValueError(f"Hugging Face config: {depth} blocks, but there are {num_tensors} tensors: the files differ")
    sizes = (config.image.width, config.text.width, config.text.vocab_size, config.text.context_length)
    sizes += (config.image.image_size, config.projector_width, config.embedding_dim, *config.image.num_group_tokens)
    if not all(isinstance(size, int) and 0 <= size < 2**24 for size in sizes):
        raise ValueError(f"Hugging Face config: sizes {sizes} are not all whole numbers of a sensible size")


def _config_to_hugging_face(config: ModelConfig) -> dict[str, Any]:
    image, text = config.image, config.text
    _check_options(config, "at Hugging Face")
    if len(set(image.num_heads)) != 1 or not image.num_output_groups:
        raise ValueError(
            f"image.num_heads={image.num_heads}, num_output_groups={image.num_output_groups}: Hugging Face needs the "
            "same heads in every stage, and grouping"
        )
    return {
        "projection_dim": config.embedding_dim,
        "projection_intermediate_dim": config.projector_width,
        "vision_config": {
            "image_size": image.image_size,
            "patch_size": image.patch_size,
            "hidden_size": image.width,
            "intermediate_size": int(image.width * image.mlp_ratio),
            "depths": list(image.depths),
            "num_hidden_layers": sum(image.depths),
            "num_attention_heads": image.num_heads[0],
            "num_group_tokens": list(image.num_group_tokens),
            # Hugging Face needs one entry per stage; that of a stage without group tokens has no effect.
            "num_output_groups": [*image.num_output_groups, image.num_output_groups[-1]][: len(image.depths)],
            "assign_mlp_ratio": [image.token_mixing_ratio, image.mlp_ratio],
        },
        "text_config": {
            "max_position_embeddings": text.context_length,
            "vocab_size": text.vocab_size,
            "hidden_size": text.width,
            "intermediate_size": 4 * text.width,
            "num_hidden_layers": text.depth,
            "num_attention_heads": text.num_heads,
            "eos_token_id": text.vocab_size - 1,
        },
    }


def _check_options(config: ModelConfig, where: str) -> None:
    """Raise ValueError if an option is set that only this project has."""
    for name, needed in (("stem", "patch"), ("assignment", "hard"), ("group_residual", True)):
        given = getattr(config.image, name)
        if given != needed:
            raise ValueError(f"image.{name}={given!r} has no counterpart {where}: only {needed!r} can be exported")
