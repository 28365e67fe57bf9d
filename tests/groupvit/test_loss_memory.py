"""Memory of the losses grows with local batch times global batch, once: there are logits, and no label tensors."""

import math
import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from groupvit.losses import image_text_contrastive_loss, multi_label_contrastive_loss
from tests.support.torch_workers import run_workers

BATCHES = (1024, 2048)
STATUS = Path("/proc/self/status")
PROMPTS, DIM = 3, 16
MATRICES = 8
"""float32 matrices [B,WBK] alive at once: logits of both directions, what their backward pass saves, gradients. A dense
int64 label tensor per direction would add 4, one per pair of prompts and workers more."""


def peak_memory(group: dist.ProcessGroup, shared: bool) -> torch.Tensor:
    """Bytes of peak memory of this worker's process after both losses and their backward pass, per batch size."""
    peaks = []
    for batch in BATCHES:
        images, texts = (torch.randn(batch, DIM, requires_grad=True) for _ in range(2))
        prompts = torch.randn(batch, PROMPTS, DIM, requires_grad=True)
        scale = torch.tensor(math.log(1 / 0.07), requires_grad=True)
        loss = image_text_contrastive_loss(images, texts, scale, group)
        keys = torch.arange(batch * PROMPTS).view(batch, PROMPTS) % (batch // 2) if shared else None
        (loss + multi_label_contrastive_loss(images, prompts, scale, group, keys)).backward()
        # Not getrusage's maximum, which a new process takes over from the one that started it.
        peaks.append(int(re.findall(r"VmHWM:\s+(\d+) kB", STATUS.read_text())[0]) * 1024)
    return torch.tensor(peaks)


@pytest.mark.skipif(not STATUS.exists(), reason="reads the peak memory from Linux's /proc")
@pytest.mark.parametrize(("world_size", "shared"), [(1, False), (2, False), (1, True)])
def test_peak_memory_is_a_few_logit_matrices(world_size: int, shared: bool) -> None:
    small, large = (batch * world_size * batch * PROMPTS * 4 for batch in BATCHES)
    for peaks in run_workers(peak_memory, world_size, shared):
        grown = (peaks[1] - peaks[0]).item() / (large - small)
        assert 1 < grown < MATRICES, f"{grown:.1f} matrices of logits"
