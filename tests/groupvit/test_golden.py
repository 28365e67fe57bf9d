"""The reference implementation's outputs with random weights (tests/data/golden), reproduced."""

import json
import math

import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from groupvit.interop import official
from groupvit.losses import image_text_contrastive_loss, multi_label_contrastive_loss
from groupvit.model import GroupViT
from groupvit.segmentation import segment_logits
from tests.support.golden import GOLDEN, TOLERANCE, assert_near
from tests.support.torch_workers import run_workers

MODELS = ("one_stage", "two_stage")

Golden = tuple[GroupViT, dict[str, Tensor]]


def golden_model(name: str) -> Golden:
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        encoder = json.loads(file.metadata()["image_encoder"])
    weights = {key.removeprefix("weights/"): value for key, value in tensors.items() if key.startswith("weights/")}
    model = official.from_official(weights, num_heads=tuple(encoder["num_heads"]), image_size=encoder["img_size"])
    return model, tensors


@pytest.fixture(scope="module", params=MODELS)
def golden(request: pytest.FixtureRequest) -> Golden:
    return golden_model(request.param)


def test_config_is_read_off_the_shapes() -> None:
    config = golden_model("two_stage")[0].config
    assert config.image.depths == (2, 2, 1)
    assert config.image.num_group_tokens == (12, 4, 0)
    assert config.image.num_output_groups == (12, 4)
    assert (config.image.width, config.image.patch_size, config.image.image_size) == (48, 8, 64)
    assert (config.text.width, config.text.depth, config.text.num_heads) == (64, 2, 1)
    assert (config.text.vocab_size, config.text.context_length) == (128, 16)
    assert (config.embedding_dim, config.projector_width) == (24, 4096)


@torch.inference_mode()
def test_image_encoder_and_assignments(golden: Golden) -> None:
    model, tensors = golden
    encoding = model.encode_image(tensors["input/image"])
    assert_near(encoding.features.pooled, tensors["encoder/pooled"])
    assert_near(encoding.features.segment_tokens, tensors["encoder/segment_tokens"])
    stages = len(model.config.image.num_output_groups)
    assert len(encoding.soft_assignments) == len(encoding.hard_assignments) == stages
    for stage in range(stages):
        assert_near(encoding.soft_assignments[stage], tensors[f"encoder/soft_assignment_{stage}"])
        torch.testing.assert_close(
            encoding.hard_assignments[stage], tensors[f"encoder/hard_assignment_{stage}"], atol=0, rtol=0
        )


@torch.inference_mode()
def test_embeddings(golden: Golden) -> None:
    model, tensors = golden
    encoding = model.encode_image(tensors["input/image"])
    assert_near(encoding.embedding, tensors["embed/image"])
    assert_near(encoding.segment_embeddings, tensors["embed/segments"])
    token_ids = tensors["input/text"]
    texts = model.encode_text(token_ids.flatten(0, 1)).unflatten(0, token_ids.shape[:2])
    assert_near(texts[:, 0], tensors["embed/caption"])
    assert_near(texts[:, 1:], tensors["embed/prompts"])


@pytest.mark.parametrize(
    ("threshold", "name"), [(0.95, "background_0.95"), (0.35, "background_0.35"), (None, "no_background")]
)
def test_segmentation_logits(golden: Golden, threshold: float | None, name: str) -> None:
    model, tensors = golden
    logits = segment_logits(model, tensors["input/image_rect"], tensors["seg/class_embeddings"], threshold)
    assert_near(logits, tensors[f"seg/logits_{name}"])


def losses_and_gradients(tensors: dict[str, Tensor], rank: int, group: dist.ProcessGroup | None) -> dict[str, Tensor]:
    """This rank's losses, and the gradients of the sum of both over all ranks."""
    images = tensors["input/image_embeddings"][rank].clone().requires_grad_()
    captions = tensors["input/caption_embeddings"][rank].clone().requires_grad_()
    prompts = tensors["input/prompt_embeddings"][rank].clone().requires_grad_()
    scale, multi_label_scale = (torch.tensor(math.log(1 / 0.07), requires_grad=True) for _ in range(2))
    image_text = image_text_contrastive_loss(images, captions, scale, group)
    multi_label = multi_label_contrastive_loss(images, prompts, multi_label_scale, group)
    (image_text + multi_label).backward()
    result = {
        "image_text_loss": image_text,
        "multi_label_loss": multi_label,
        "grad_image": images.grad,
        "grad_caption": captions.grad,
        "grad_prompts": prompts.grad,
        "grad_logit_scale": scale.grad,
        "grad_multi_label_logit_scale": multi_label_scale.grad,
    }
    return {name: value.detach() for name, value in result.items() if value is not None}


def assert_losses(result: dict[str, Tensor], tensors: dict[str, Tensor], rank: int) -> None:
    expected = {name: value[rank] for name, value in tensors.items() if not name.startswith("input/")}
    assert result.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(result[name], value, atol=TOLERANCE, rtol=0, msg=lambda text, n=name: f"{n}: {text}")


def test_losses_of_one_rank() -> None:
    tensors = load_file(GOLDEN / "losses_1_rank.safetensors")
    assert_losses(losses_and_gradients(tensors, 0, None), tensors, 0)


def test_losses_of_two_ranks() -> None:
    tensors = load_file(GOLDEN / "losses_2_rank.safetensors")
    for rank, result in enumerate(run_workers(_losses_of_this_rank, 2)):
        assert_losses(result, tensors, rank)


def _losses_of_this_rank(group: dist.ProcessGroup) -> dict[str, Tensor]:
    tensors = load_file(GOLDEN / "losses_2_rank.safetensors")
    return losses_and_gradients(tensors, dist.get_rank(group), group)
