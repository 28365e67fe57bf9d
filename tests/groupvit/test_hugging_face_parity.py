"""Our full-size model against `transformers.GroupViTModel` with the same random weights, both ways."""

import pytest
import torch
from torch import Tensor
from transformers import GroupViTConfig, GroupViTModel

from groupvit import interop
from groupvit.config import ImageEncoderConfig, ModelConfig, TextEncoderConfig
from groupvit.model import GroupViT

TOLERANCE = 1e-4
END = 49_407


@pytest.fixture(scope="module")
def hugging_face() -> GroupViTModel:
    torch.manual_seed(0)
    model = GroupViTModel(GroupViTConfig()).eval()
    randomise(model)
    return model


@torch.no_grad()
def randomise(model: torch.nn.Module) -> None:
    """Fresh models have zero biases, unit norms and empty batch statistics, which would hide a mix-up."""
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith("running_mean") or (tensor.is_floating_point() and tensor.ndim == 1):
            tensor.add_(0.1 * torch.randn_like(tensor))
        elif name.endswith(("group_token", "position_embeddings")):
            tensor.normal_(std=0.5)


def some_texts(num_texts: int, context_length: int = 77) -> Tensor:
    """Random token ids of varied length, zero padded after the end token."""
    token_ids = torch.randint(1, END, (num_texts, context_length))
    for row, length in enumerate(torch.randint(3, context_length, (num_texts,)).tolist()):
        token_ids[row, length] = END
        token_ids[row, length + 1 :] = 0
    return token_ids


@torch.inference_mode()
def assert_same_outputs(ours: GroupViT, theirs: GroupViTModel, token_ids: Tensor) -> None:
    side = ours.config.image.image_size
    images = torch.randn(2, 3, side, side)
    expected = theirs(input_ids=token_ids, pixel_values=images)
    image_embeds = torch.nn.functional.normalize(ours.encode_image(images).embedding, dim=-1)
    text_embeds = torch.nn.functional.normalize(ours.encode_text(token_ids), dim=-1)
    logits = ours.logit_scale.exp() * image_embeds @ text_embeds.T
    torch.testing.assert_close(image_embeds, expected.image_embeds, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(text_embeds, expected.text_embeds, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(logits, expected.logits_per_image, atol=TOLERANCE, rtol=0)


def test_full_size_model_equals_hugging_face(hugging_face: GroupViTModel) -> None:
    ours = interop.from_hugging_face(hugging_face.state_dict(), hugging_face.config.to_dict())
    assert ours.config == ModelConfig()
    assert_same_outputs(ours, hugging_face, some_texts(5))


def test_round_trip_is_exact(hugging_face: GroupViTModel) -> None:
    before = hugging_face.state_dict()
    config, after = interop.to_hugging_face(interop.from_hugging_face(before, hugging_face.config.to_dict()))
    assert GroupViTConfig(**config).to_dict() == hugging_face.config.to_dict()
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name


def test_exported_one_stage_model_equals_ours() -> None:
    torch.manual_seed(1)
    config = ModelConfig(
        image=ImageEncoderConfig(
            image_size=32,
            patch_size=8,
            width=64,
            depths=(2, 1),
            num_heads=(4, 4),
            num_group_tokens=(6, 0),
            num_output_groups=(4,),
        ),
        text=TextEncoderConfig(width=64, depth=2, num_heads=2),
        embedding_dim=32,
        projector_width=128,
    )
    ours = GroupViT(config).eval()
    randomise(ours)
    arguments, weights = interop.to_hugging_face(ours)
    theirs = GroupViTModel(GroupViTConfig(**arguments)).eval()
    theirs.load_state_dict(weights)
    assert_same_outputs(ours, theirs, some_texts(4))


def test_missing_and_unknown_tensors_are_named(hugging_face: GroupViTModel) -> None:
    weights, config = hugging_face.state_dict(), hugging_face.config.to_dict()
    with pytest.raises(ValueError, match=r"unknown tensor vision_model\.extra"):
        interop.from_hugging_face({**weights, "vision_model.extra": torch.zeros(1)}, config)
    del weights["vision_model.encoder.stages.1.layers.2.self_attn.k_proj.weight"]
    with pytest.raises(ValueError, match=r"lacks image_encoder\.stages\.1\.blocks\.2\.attention\.qkv\.weight"):
        interop.from_hugging_face(weights, config)


def test_options_unknown_to_hugging_face_are_refused() -> None:
    config = ModelConfig(image=ImageEncoderConfig(stem="convolutional"), text=TextEncoderConfig(depth=1))
    with pytest.raises(ValueError, match=r"image\.stem='convolutional'"):
        interop.to_hugging_face(GroupViT(config))
