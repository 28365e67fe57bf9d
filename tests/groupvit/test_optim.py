"""Weight-decay rules and the learning-rate schedule."""

import math

import pytest

from groupvit.config import OptimizerConfig
from groupvit.optim import build_optimizer, learning_rate
from tests.support.small_model import small_model


@pytest.mark.parametrize("decay_logit_scales", [False, True])
def test_what_decays(decay_logit_scales: bool) -> None:
    model = small_model()
    optimizer = build_optimizer(model, OptimizerConfig(decay_logit_scales=decay_logit_scales))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, spared = ({names[id(p)] for p in group["params"]} for group in optimizer.param_groups)
    assert decayed | spared == set(names.values()) and not decayed & spared
    assert {
        "image_encoder.positions",
        "image_encoder.stages.0.group_tokens",
        "text_encoder.token_embedding.weight",
    } <= decayed
    assert {
        "image_encoder.norm.weight",
        "text_encoder.blocks.0.mlp.hidden.bias",
        "image_projector.norm.weight",
    } <= spared
    assert ("logit_scale" in decayed) == ("multi_label_logit_scale" in decayed) == decay_logit_scales


def test_the_schedule_is_the_papers() -> None:
    config = OptimizerConfig(warmup_steps=2 * 6997)
    rate = lambda step, batch=4096: learning_rate(step, config, num_steps=209_910, global_batch_size=batch)  # noqa: E731
    assert rate(0) == 4e-6
    assert rate(6997) == pytest.approx((4e-6 + 1.6e-3) / 2)
    # The cosine is not shifted by warm-up: where warm-up ends it has already fallen a little.
    first = rate(13_994)
    assert first == pytest.approx(4e-5 + (1.6e-3 - 4e-5) * 0.5 * (1 + math.cos(math.pi * 13_994 / 209_910)))
    assert first < 1.6e-3
    assert rate(209_910) == pytest.approx(4e-5)
    assert rate(100_000, batch=1024) == pytest.approx(rate(100_000) / 4)
