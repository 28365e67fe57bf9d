"""The text tower: a causal transformer like CLIP's, whose output is read at the end token (paper section 4.1).

Shapes: N texts, T token ids, C channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groupvit.config import TextEncoderConfig
from groupvit.packing import pack
from groupvit.transformer import Block, quick_gelu


class TextEncoder(nn.Module):
    """Token ids [N,T] -> features [N,C], before the projector."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.positions = nn.Parameter(torch.empty(config.context_length, width))
        self.blocks = nn.ModuleList(Block(width, config.num_heads, activation=quick_gelu) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width)
        self._initialise()

    def _initialise(self) -> None:
        """Initialise as CLIP does: the deeper the tower, the smaller the residual branches."""
        width = self.config.width
        branch_std = width**-0.5 * (2 * self.config.depth) ** -0.5
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.01)
        for block in self.blocks:
            assert isinstance(block, Block)
            nn.init.normal_(block.attention.qkv.weight, std=width**-0.5)
            nn.init.normal_(block.attention.out.weight, std=branch_std)
            nn.init.normal_(block.mlp.hidden.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.out.weight, std=branch_std)
            for linear in (block.attention.qkv, block.attention.out, block.mlp.hidden, block.mlp.out):
                nn.init.zeros_(linear.bias)

    def forward(self, token_ids: Tensor) -> Tensor:
        """Token ids [N,T] int64 -> features [N,C]. Ids are padded with zeros; the largest id is the end token.

        ValueError if T exceeds the context length.
        """
        if token_ids.shape[1] > self.config.context_length:
            raise ValueError(
                f"texts of {token_ids.shape[1]} tokens, but text.context_length={self.config.context_length}: "
                "truncate them"
            )
        if not self.config.deduplicate or len(token_ids) < 2:
            return self._encode(token_ids)
        unique, inverse = token_ids.unique(dim=0, return_inverse=True)
        return self._encode(unique)[inverse]

    def _encode(self, token_ids: Tensor) -> Tensor:
        lengths = token_ids.argmax(dim=-1) + 1
        row_length = int(lengths.max()) if self.config.trim and len(lengths) else token_ids.shape[1]
        packed = pack(lengths, row_length, share_rows=self.config.pack)
        x = self.token_embedding(packed.take(token_ids)) + F.embedding(packed.positions, self.positions)
        mask = packed.mask
        for block in self.blocks:
            x = block(x, mask=mask)
        return self.norm(x.flatten(0, 1)[packed.ends])
