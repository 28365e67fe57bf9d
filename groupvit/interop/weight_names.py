"""Table of tensor names: ours, those of the released checkpoints, and those of Hugging Face's `GroupViTModel`.

It uses only the names and shapes of the other two. `official` converts weights with this table.
"""

from collections.abc import Iterator
from typing import NamedTuple

from groupvit.config import ImageEncoderConfig, ModelConfig, TextEncoderConfig


class NameRow(NamedTuple):
    """Names of one tensor. Hugging Face splits queries, keys and values, so it may have several names there."""

    ours: str
    official: str
    hugging_face: tuple[str, ...]


def name_rows(config: ModelConfig) -> Iterator[NameRow]:
    """Yield the names of every tensor of a model with this config."""
    yield NameRow("logit_scale", "logit_scale", ("logit_scale",))
    yield NameRow("multi_label_logit_scale", "multi_label_logit_scale", ())
    yield from _image_rows(config.image)
    yield from _text_rows(config.text)
    for ours, official, hugging_face in (("image", "img", "visual"), ("text", "text", "text")):
        ours, official, hugging_face = f"{ours}_projector", f"{official}_projector", f"{hugging_face}_projection"
        yield from _affine(f"{ours}.hidden", f"{official}.linear_hidden.0", f"{hugging_face}.0")
        yield from _affine(f"{ours}.norm", f"{official}.linear_hidden.1", f"{hugging_face}.1")
        for statistic in ("running_mean", "running_var", "num_batches_tracked"):
            names = (f"{ours}.norm.{statistic}", f"{official}.linear_hidden.1.{statistic}")
            yield NameRow(*names, (f"{hugging_face}.1.{statistic}",))
        yield from _affine(f"{ours}.out", f"{official}.linear_out", f"{hugging_face}.3")


def _image_rows(config: ImageEncoderConfig) -> Iterator[NameRow]:
    ours, official, hugging_face = "image_encoder", "img_encoder", "vision_model.embeddings"
    yield NameRow(f"{ours}.positions", f"{official}.pos_embed", (f"{hugging_face}.position_embeddings",))
    patches = f"{hugging_face}.patch_embeddings.projection"
    yield from _affine(f"{ours}.stem.convolution", f"{official}.patch_embed.proj", patches)
    yield from _affine(f"{ours}.stem_norm", f"{official}.patch_embed.norm", f"{hugging_face}.layernorm")
    yield from _affine(f"{ours}.norm", f"{official}.norm", "vision_model.layernorm")
    for stage, depth in enumerate(config.depths):
        ours, official = f"image_encoder.stages.{stage}", f"img_encoder.layers.{stage}"
        hugging_face = f"vision_model.encoder.stages.{stage}"
        for block in range(depth):
            yield from _image_block_rows(
                f"{ours}.blocks.{block}", f"{official}.blocks.{block}", f"{hugging_face}.layers.{block}"
            )
        if config.num_group_tokens[stage] > 0:
            yield NameRow(f"{ours}.group_tokens", f"{official}.group_token", (f"{hugging_face}.group_token",))
            yield from _grouping_rows(f"{ours}.grouping", f"{official}.downsample", f"{hugging_face}.downsample")
            if stage > 0:
                names = [f"{prefix}.group_projector" for prefix in (ours, official, hugging_face)]
                yield from _affine(*(f"{name}.0" for name in names))
                yield from _mlp_rows(f"{names[0]}.1.mlp", f"{names[1]}.1", f"{names[2]}.1")


def _image_block_rows(ours: str, official: str, hugging_face: str) -> Iterator[NameRow]:
    yield from _affine(f"{ours}.attention_norm", f"{official}.norm1", f"{hugging_face}.layer_norm1")
    yield from _affine(f"{ours}.mlp_norm", f"{official}.norm2", f"{hugging_face}.layer_norm2")
    yield from _affine(f"{ours}.attention.qkv", f"{official}.attn.qkv", *_split_qkv(f"{hugging_face}.self_attn"))
    yield from _affine(f"{ours}.attention.out", f"{official}.attn.proj", f"{hugging_face}.self_attn.out_proj")
    yield from _mlp_rows(f"{ours}.mlp", f"{official}.mlp", f"{hugging_face}.mlp")


def _grouping_rows(ours: str, official: str, hugging_face: str) -> Iterator[NameRow]:
    def same(our_name: str, their_name: str) -> tuple[str, str, str]:
        return f"{ours}.{our_name}", f"{official}.{their_name}", f"{hugging_face}.{their_name}"

    yield from _affine(*same("group_norm", "norm_tokens"))
    yield from _affine(*same("segment_norm", "norm_x"))
    yield from _affine(*same("mixed_norm", "norm_post_tokens"))
    yield from _affine(*same("mlp_norm", "norm_new_x"))
    yield from _mlp_rows(*same("token_mixing.mlp", "mlp_inter"))
    yield from _mlp_rows(*same("mlp", "mlp_channels"))
    yield from _affine(*same("pre_assignment.mlp_norm", "pre_assign_attn.norm2"))
    yield from _affine(*same("pre_assignment.out_norm", "pre_assign_attn.norm_post"))
    yield from _mlp_rows(*same("pre_assignment.mlp", "pre_assign_attn.mlp"))
    for our_name, their_name in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("out", "proj")):
        yield from _affine(*same(f"assignment.{our_name}", f"assign.{their_name}"))
        their_hugging_face = "out_proj" if our_name == "out" else their_name
        yield from _affine(
            f"{ours}.pre_assignment.attention.{our_name}",
            f"{official}.pre_assign_attn.attn.{their_name}",
            f"{hugging_face}.pre_assign_attn.attn.{their_hugging_face}",
        )


def _text_rows(config: TextEncoderConfig) -> Iterator[NameRow]:
    ours, official, hugging_face = "text_encoder", "text_encoder", "text_model.embeddings"
    for our_name, official_name, their_name in (
        ("token_embedding.weight", "token_embedding.weight", "token_embedding.weight"),
        ("positions", "positional_embedding", "position_embedding.weight"),
    ):
        yield NameRow(f"{ours}.{our_name}", f"{official}.{official_name}", (f"{hugging_face}.{their_name}",))
    yield from _affine(f"{ours}.norm", f"{official}.ln_final", "text_model.final_layer_norm")
    for block in range(config.depth):
        ours, official = f"text_encoder.blocks.{block}", f"text_encoder.transformer.resblocks.{block}"
        hugging_face = f"text_model.encoder.layers.{block}"
        yield from _affine(f"{ours}.attention_norm", f"{official}.ln_1", f"{hugging_face}.layer_norm1")
        yield from _affine(f"{ours}.mlp_norm", f"{official}.ln_2", f"{hugging_face}.layer_norm2")
        for kind in ("weight", "bias"):
            split = tuple(f"{name}.{kind}" for name in _split_qkv(f"{hugging_face}.self_attn"))
            yield NameRow(f"{ours}.attention.qkv.{kind}", f"{official}.attn.in_proj_{kind}", split)
        yield from _affine(f"{ours}.attention.out", f"{official}.attn.out_proj", f"{hugging_face}.self_attn.out_proj")
        yield from _affine(f"{ours}.mlp.hidden", f"{official}.mlp.c_fc", f"{hugging_face}.mlp.fc1")
        yield from _affine(f"{ours}.mlp.out", f"{official}.mlp.c_proj", f"{hugging_face}.mlp.fc2")


def _mlp_rows(ours: str, official: str, hugging_face: str) -> Iterator[NameRow]:
    yield from _affine(f"{ours}.hidden", f"{official}.fc1", f"{hugging_face}.fc1")
    yield from _affine(f"{ours}.out", f"{official}.fc2", f"{hugging_face}.fc2")


def _affine(ours: str, official: str, *hugging_face: str) -> Iterator[NameRow]:
    for kind in ("weight", "bias"):
        yield NameRow(f"{ours}.{kind}", f"{official}.{kind}", tuple(f"{name}.{kind}" for name in hugging_face))


def _split_qkv(prefix: str) -> tuple[str, ...]:
    return tuple(f"{prefix}.{part}_proj" for part in "qkv")
