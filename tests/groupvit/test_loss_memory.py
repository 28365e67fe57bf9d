"""Memory of the losses grows with local batch times global batch, once: there are logits, and no label tensors."""

import math

import pytest
import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

from groupvit.losses import image_text_contrastive_loss, multi_label_contrastive_loss
from tests.support.torch_workers import run_workers

BATCHES = (1024, 2048)
PROMPTS, DIM = 3, 16


def peak_memory(group: dist.ProcessGroup, shared: bool) -> torch.Tensor:
    """The most bytes that tensors hold at once in both losses and their backward pass, per batch size."""
    peaks = []
    for batch in BATCHES:
        # Allocations as torch counts them: the process's own peak also has what malloc keeps, another each time.
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            images, texts = (torch.randn(batch, DIM, requires_grad=True) for _ in range(2))
            prompts = torch.randn(batch, PROMPTS, DIM, requires_grad=True)
            scale = torch.tensor(math.log(1 / 0.07), requires_grad=True)
            loss = image_text_contrastive_loss(images, texts, scale, group)
            keys = torch.arange(batch * PROMPTS).view(batch, PROMPTS) % (batch // 2) if shared else None
            (loss + multi_label_contrastive_loss(images, prompts, scale, group, keys)).backward()
        assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
        events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
        events.sort(key=lambda event: event.start_ns())
        held = torch.tensor([event.nbytes() for event in events])  # pyright: ignore
        peaks.append(int(held.cumsum(0).max()))
    return torch.tensor(peaks)


@pytest.mark.parametrize(("world_size", "shared", "matrices"), [(1, False, 6), (2, False, 6), (1, True, 7)])
def test_peak_memory_is_a_few_logit_matrices(world_size: int, shared: bool, matrices: int) -> None:
    """float32 matrices [B,WBK] alive at once: logits of both directions, what their backward pass saves, gradients.

    A dense int64 label tensor per direction would add 4, one per pair of prompts and workers more.
    """
    small, large = (batch * world_size * batch * PROMPTS * 4 for batch in BATCHES)
    for peaks in run_workers(peak_memory, world_size, shared):
        grown = (peaks[1] - peaks[0]).item() / (large - small)
        assert 1 < grown < matrices, f"{grown:.2f} matrices of logits"
