"""The tower with weights laid out beforehand against the plain one."""

from dataclasses import replace

import pytest
import torch

from groupvit.config import ImageEncoderConfig
from groupvit.image_encoder import ImageEncoder
from groupvit.prepacked import PrepackedLinear, prepacked
from tests.support.small_model import SMALL, small_model

CONFIGS = {
    "two stages": SMALL.image,
    "without grouping": replace(
        SMALL.image, depths=(2,), num_heads=(2,), num_group_tokens=(0,), num_output_groups=(), stem="convolutional"
    ),
    "full size": ImageEncoderConfig(),
}


def encoder_of(config: ImageEncoderConfig) -> ImageEncoder:
    return small_model(replace(SMALL, image=config)).image_encoder.eval()


def images(count: int, height: int, width: int) -> torch.Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.skipif(not torch.backends.cpu.get_cpu_capability().startswith("AVX"), reason="laid out on x86 alone")
@pytest.mark.parametrize("name", CONFIGS)
def test_is_the_plain_tower(name: str) -> None:
    encoder = encoder_of(CONFIGS[name])
    packed = prepacked(encoder)
    assert sum(isinstance(module, PrepackedLinear) for module in packed.modules()) == 4 * CONFIGS[name].depths[0]
    with torch.inference_mode():
        expected, found = encoder(images(2, 64, 80)), packed(images(2, 64, 80))
    assert found.grid == expected.grid
    torch.testing.assert_close(found.segment_tokens, expected.segment_tokens, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.image_tokens, expected.image_tokens, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(found.assignment_logits, expected.assignment_logits, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_leaves_the_plain_tower_as_it_was() -> None:
    encoder = encoder_of(SMALL.image)
    names = list(encoder.state_dict())
    with torch.inference_mode():
        before = prepacked(encoder)(images(1, 32, 32)).pooled
    assert list(encoder.state_dict()) == names
    encoder(images(1, 32, 32)).pooled.sum().backward()
    weight = encoder.get_parameter("stages.0.blocks.0.mlp.hidden.weight")
    assert weight.grad is not None
    with torch.no_grad():
        weight.mul_(2)
    with torch.inference_mode():  # asked again, it has the new weights
        assert not torch.allclose(prepacked(encoder)(images(1, 32, 32)).pooled, before)


def test_other_precisions_stay_plain() -> None:
    encoder = small_model().image_encoder.double()
    assert prepacked(encoder) is encoder
