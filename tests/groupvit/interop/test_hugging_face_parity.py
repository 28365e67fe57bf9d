"""Our full-size model against `transformers.GroupViTModel` with the same random weights, both ways."""

from dataclasses import replace

import pytest
import torch
from transformers import GroupViTConfig, GroupViTModel

from groupvit.config import ImageEncoderConfig, ModelConfig, TextEncoderConfig
from groupvit.interop import official
from groupvit.model import GroupViT
from tests.support.hugging_face import assert_same_outputs, randomise, some_texts
from tests.support.small_model import OFFICIAL


@pytest.fixture(scope="module")
def hugging_face() -> GroupViTModel:
    torch.manual_seed(0)
    model = GroupViTModel(GroupViTConfig()).eval()
    randomise(model)
    return model


def test_full_size_model_equals_hugging_face(hugging_face: GroupViTModel) -> None:
    ours = official.from_hugging_face(hugging_face.state_dict(), hugging_face.config.to_dict())
    assert ours.config == ModelConfig()
    assert_same_outputs(ours, hugging_face, some_texts(5))


def test_round_trip_is_exact(hugging_face: GroupViTModel) -> None:
    before = hugging_face.state_dict()
    config, after = official.to_hugging_face(official.from_hugging_face(before, hugging_face.config.to_dict()))
    assert GroupViTConfig(**config).to_dict() == hugging_face.config.to_dict()
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name


def test_exported_one_stage_model_equals_ours() -> None:
    torch.manual_seed(1)
    config = replace(
        OFFICIAL,
        image=replace(OFFICIAL.image, depths=(2, 1), num_heads=(4, 4), num_group_tokens=(6, 0), num_output_groups=(4,)),
        text=replace(OFFICIAL.text, depth=2, num_heads=2),
        embedding_dim=32,
        projector_width=128,
    )
    ours = GroupViT(config).eval()
    randomise(ours)
    arguments, weights = official.to_hugging_face(ours)
    theirs = GroupViTModel(GroupViTConfig(**arguments)).eval()
    theirs.load_state_dict(weights)
    assert_same_outputs(ours, theirs, some_texts(4))


def test_missing_and_unknown_tensors_are_named(hugging_face: GroupViTModel) -> None:
    weights, config = hugging_face.state_dict(), hugging_face.config.to_dict()
    with pytest.raises(ValueError, match=r"unknown tensor vision_model\.extra"):
        official.from_hugging_face({**weights, "vision_model.extra": torch.zeros(1)}, config)
    del weights["vision_model.encoder.stages.1.layers.2.self_attn.k_proj.weight"]
    with pytest.raises(ValueError, match=r"lacks image_encoder\.stages\.1\.blocks\.2\.attention\.qkv\.weight"):
        official.from_hugging_face(weights, config)


def test_options_unknown_to_hugging_face_are_refused() -> None:
    config = ModelConfig(image=ImageEncoderConfig(stem="convolutional"), text=TextEncoderConfig(depth=1))
    with pytest.raises(ValueError, match=r"image\.stem='convolutional'"):
        official.to_hugging_face(GroupViT(config))
