"""The image tower: any number of stages, any image size, reproducible noise."""

import dataclasses

import pytest
import torch

from groupvit.config import ImageEncoderConfig
from groupvit.image_encoder import ImageEncoder, PatchStem
from groupvit.noise import Uniform, generator_noise

BASE = ImageEncoderConfig(
    image_size=32,
    patch_size=8,
    width=24,
    depths=(2,),
    num_heads=(2,),
    num_group_tokens=(0,),
    num_output_groups=(),
)


def uniform(seed: int) -> Uniform:
    return generator_noise(seed, torch.device("cpu"))


def images(height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("tokens", "outputs"),
    [((0,), ()), ((6, 0), (6,)), ((6,), (5,)), ((6, 4, 0), (6, 3)), ((8, 6, 4, 0), (8, 6, 2)), ((6, 4), (6, 4))],
)
@pytest.mark.parametrize("stem", ["patch", "convolutional"])
def test_any_number_of_stages(tokens: tuple[int, ...], outputs: tuple[int, ...], stem: str) -> None:
    num_stages = len(tokens)
    config = dataclasses.replace(
        BASE,
        stem=stem,
        depths=(1,) * num_stages,
        num_heads=(2,) * num_stages,
        num_group_tokens=tokens,
        num_output_groups=outputs,
    )
    features = ImageEncoder(config).eval()(images(32, 48))
    assert features.grid == (4, 6)
    assert features.image_tokens.shape == (2, 24, 24)
    assert features.segment_tokens.shape == (2, outputs[-1] if outputs else 24, 24)
    sizes = [24, *outputs]
    assert [tuple(a.shape) for a in features.assignment_logits] == [
        (2, groups, segments) for segments, groups in zip(sizes, outputs, strict=False)
    ]
    torch.testing.assert_close(features.pooled, features.segment_tokens.mean(dim=1))


def test_patch_stem_is_the_convolution() -> None:
    stem = PatchStem(24, 8)
    expected = stem.convolution(images(16, 40)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(stem(images(16, 40)), expected, rtol=1e-5, atol=1e-5)


def test_noise_comes_from_the_generator_alone() -> None:
    config = dataclasses.replace(
        BASE, depths=(2, 1), num_heads=(2, 2), num_group_tokens=(6, 0), num_output_groups=(6,), stochastic_depth=0.5
    )
    encoder = ImageEncoder(config).train()

    def pooled(seed: int | None) -> torch.Tensor:
        noise = None if seed is None else encoder.draw_noise(len(images()), (4, 4), uniform(seed))
        return encoder(images(), noise).pooled

    assert torch.equal(pooled(1), pooled(1))
    assert not torch.equal(pooled(1), pooled(2))
    assert torch.equal(pooled(None), pooled(None))


def test_stochastic_depth_rises_linearly_and_keeps_the_mean() -> None:
    encoder = ImageEncoder(dataclasses.replace(BASE, depths=(5,), stochastic_depth=0.4))
    keeps = encoder.draw_noise(20_000, (4, 4), uniform(0)).keeps
    assert keeps is not None
    assert keeps.gt(0).float().flatten(1).mean(dim=1).tolist() == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6], abs=0.01)
    assert keeps.flatten(1).mean(dim=1).tolist() == pytest.approx([1.0] * 5, abs=0.02)


def test_an_image_that_patches_do_not_tile_is_refused() -> None:
    with pytest.raises(ValueError, match="multiples of the patch size 8"):
        ImageEncoder(BASE)(images(30, 32))
