"""The average of the weights follows its formula bit by bit."""

import torch

from groupvit.averaging import update_average
from tests.support.small_model import small_model


def test_weights_are_averaged_and_batch_statistics_copied() -> None:
    average, model = small_model(seed=0), small_model(seed=1)
    expected = {name: x.detach().clone() for name, x in average.named_parameters()}
    model.image_projector.norm(torch.randn(8, 64, generator=torch.Generator().manual_seed(2)))
    for step, decay in ((0, 0.1), (1, 2 / 11), (10_000, 0.99)):  # the first steps are forgotten faster
        update_average(average, model, 0.99, step)
        for name, source in model.named_parameters():
            expected[name].lerp_(source.detach(), 1 - decay)
        assert all(torch.equal(x, expected[name]) for name, x in average.named_parameters()), step
    for name, buffer in model.named_buffers():
        assert torch.equal(average.get_buffer(name), buffer), name
    assert average.image_projector.norm.num_batches_tracked == 1
