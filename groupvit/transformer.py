"""Transformer layers that both towers and the grouping blocks use.

Shapes: B images or texts, N tokens, C channels, H heads.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

KERNELS_FOR_VARIED_SHAPES = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Attention kernels on CUDA, the first that can do it. None of them takes time to prepare for a new shape."""
KERNELS = [SDPBackend.CUDNN_ATTENTION, *KERNELS_FOR_VARIED_SHAPES]
"""The same for shapes that stay, as in training images. On an H100, cuDNN's kernel is the fastest. It takes
50 to 100 ms to prepare for each new shape, and keeps what it prepared for ever."""
_always_fused = False


@contextlib.contextmanager
def fused_attention(on: bool) -> Iterator[None]:
    """Meanwhile, if `on`, CPUs use their fused kernel in bfloat16, too, which keeps as much as a GPU's."""
    global _always_fused
    before, _always_fused = _always_fused, on
    try:
        yield
    finally:
        _always_fused = before


def quick_gelu(x: Tensor) -> Tensor:
    """CLIP's approximation of GELU, x * sigmoid(1.702 x); any shape."""
    return F.silu(1.702 * x) * (1 / 1.702)  # the same function; the backward pass of silu is one kernel


class Mlp(nn.Module):
    """Linear, activation, Linear over the last axis."""

    def __init__(
        self, in_width: int, hidden_width: int, out_width: int, activation: Callable[[Tensor], Tensor] = F.gelu
    ) -> None:
        super().__init__()
        self.hidden = nn.Linear(in_width, hidden_width)
        self.out = nn.Linear(hidden_width, out_width)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.activation(self.hidden(x)))


class SelfAttention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values: [B,N,C] -> [B,N,C]."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """`mask` is bool, broadcast to [B,H,N,N]: True where a query may attend to a key. None: everywhere."""
        q, k, v = (_split_heads(part, self.num_heads) for part in self.qkv(x).chunk(3, dim=-1))
        return self.out(_merge_heads(_attend(q, k, v, mask, varied=mask is not None or not self.training)))


class CrossAttention(nn.Module):
    """Multi-head attention of queries [B,M,C] to keys = values [B,N,C] -> [B,M,C]."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        q, k, v = (
            _split_heads(part, self.num_heads) for part in (self.query(queries), self.key(keys), self.value(keys))
        )
        return self.out(_merge_heads(_attend(q, k, v, varied=not self.training)))


class Block(nn.Module):
    """Pre-norm transformer block: x += Attention(LN x); x += MLP(LN x).

    `keep` is None or has one factor per residual branch and sample, [2,B,1,1]: 0 for a dropped branch, else
    1 / keep rate. The caller draws it, so that a block that is recomputed (activation checkpointing, accumulation) has
    the same noise.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        mlp_ratio: float = 4.0,
        activation: Callable[[Tensor], Tensor] = F.gelu,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, num_heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio), width, activation)

    def forward(self, x: Tensor, keep: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        attended = self.attention(self.attention_norm(x), mask)
        x = x + attended if keep is None else torch.addcmul(x, attended, keep[0])
        transformed = self.mlp(self.mlp_norm(x))
        return x + transformed if keep is None else torch.addcmul(x, transformed, keep[1])


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, varied: bool = True) -> Tensor:
    """softmax(q k^T / sqrt(C/H)) v: [B,H,M,C/H], [B,H,N,C/H] twice -> [B,H,M,C/H]. `varied`: shapes differ by call."""
    if q.device.type == "cuda":
        with sdpa_kernel(KERNELS_FOR_VARIED_SHAPES if varied else KERNELS, set_priority=True):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    if q.dtype != torch.bfloat16 or _always_fused:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    # On CPUs, the fused kernel's bfloat16 backward pass leaves matrix units unused. Plain products are twice as fast.
    heads = q.shape[:2]
    q, k, v = (part.flatten(0, 1) for part in (q, k, v))  # contiguous: else each product would make a copy
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(1, 2)
    if mask is not None:
        logits = logits.unflatten(0, heads).masked_fill(~mask, float("-inf")).flatten(0, 1)
    return (logits.softmax(dim=-1) @ v).unflatten(0, heads)


def _split_heads(x: Tensor, num_heads: int) -> Tensor:
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)  # [B,N,C] -> [B,H,N,C/H]


def _merge_heads(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)  # [B,H,N,C/H] -> [B,N,C]
