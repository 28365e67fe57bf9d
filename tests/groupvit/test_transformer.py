"""The two ways attention is computed agree, and the block is what its docstring says."""

import pytest
import torch

from groupvit.transformer import Block, SelfAttention, quick_gelu


@pytest.mark.parametrize("masked", [False, True])
def test_bfloat16_attention_equals_float32(masked: bool) -> None:
    """On CPUs bfloat16 takes plain products, float32 the fused kernel."""
    torch.manual_seed(0)
    attention = SelfAttention(32, 4)
    x = torch.randn(3, 9, 32, requires_grad=True)
    mask = torch.ones(3, 1, 9, 9, dtype=torch.bool).tril() if masked else None
    cotangent = torch.randn(3, 9, 32)
    results = []
    for enabled in (False, True):
        x.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            output = attention(x, mask)
        output.float().backward(cotangent)
        results.append((output.float().detach(), x.grad))
    for actual, expected in zip(results[1], results[0], strict=True):
        assert actual is not None and expected is not None
        assert (actual - expected).norm() < 0.02 * expected.norm()


def test_quick_gelu() -> None:
    x = torch.linspace(-6, 6, 101)
    torch.testing.assert_close(quick_gelu(x), x * torch.sigmoid(1.702 * x))


def test_dropped_branches_leave_the_sample_alone() -> None:
    torch.manual_seed(0)
    block, x = Block(16, 2), torch.randn(2, 5, 16)
    keep = torch.tensor([0.0, 2.0]).view(1, 2, 1, 1).expand(2, -1, -1, -1)
    after_attention = x + 2 * block.attention(block.attention_norm(x))
    kept = after_attention + 2 * block.mlp(block.mlp_norm(after_attention))
    output = block(x, keep)
    assert torch.equal(output[0], x[0])
    torch.testing.assert_close(output[1], kept[1])
