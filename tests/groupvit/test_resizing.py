"""Resizing in NumPy, against PyTorch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from groupvit.resizing import resize_short_side


@pytest.mark.parametrize(
    ("height", "width", "short_side"), [(375, 500, 448), (500, 332, 448), (300, 431, 128), (97, 64, 333), (16, 17, 640)]
)
def test_without_antialiasing_it_is_torchs_bilinear_to_the_bit(height: int, width: int, short_side: int) -> None:
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    ours = resize_short_side(pixels, short_side, antialias=False)
    planes = torch.tensor(pixels).permute(2, 0, 1)[None].float()
    theirs = F.interpolate(planes, size=ours.shape[:2], mode="bilinear", align_corners=False)[0]
    differences = np.abs(ours.astype(int) - theirs.round().permute(1, 2, 0).numpy())
    assert differences.max() <= 1  # where a processor has no fused multiply-add, PyTorch itself rounds otherwise
    assert (differences > 0).mean() <= (0 if "AVX" in torch.backends.cpu.get_cpu_capability() else 1e-4)
