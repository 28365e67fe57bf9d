"""The text tower: a causal transformer like CLIP's, whose output is read at the end token (paper section 4.1).

Shapes: N texts, T token ids, C channels, R rows of L tokens.
"""

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groupvit.config import TextEncoderConfig
from groupvit.packing import PackedTexts, pack
from groupvit.transformer import Block, quick_gelu


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArrangedTexts:
    """Texts as the tower computes them: distinct ones once, several to a row. All tensors are on one device."""

    token_ids: Tensor
    """[R,L] int64."""
    places: PackedTexts
    """Which text and position each token of the rows is."""
    inverse: Tensor | None
    """[N] int64: index of each text among the distinct ones. None: all are computed, in order."""

    def map(self, function: Callable[[Tensor], Tensor]) -> "ArrangedTexts":
        """Apply a function to each tensor, for example to copy it to another device."""
        return ArrangedTexts(
            token_ids=function(self.token_ids),
            places=self.places.map(function),
            inverse=None if self.inverse is None else function(self.inverse),
        )


def arrange_texts(token_ids: Tensor, config: TextEncoderConfig) -> ArrangedTexts:
    """Arrange token ids [N,T] int64 for the tower. Ids are padded with zeros; the largest id is the end token.

    The shapes depend on the texts, so on a GPU the host waits for the device several times. Arrange them on the CPU,
    and copy the result.
    ValueError if T exceeds the context length.
    """
    if token_ids.shape[1] > config.context_length:
        raise ValueError(
            f"texts of {token_ids.shape[1]} tokens, but text.context_length={config.context_length}: truncate them"
        )
    inverse = None
    if config.deduplicate and len(token_ids) > 1:
        token_ids, inverse = token_ids.unique(dim=0, return_inverse=True)
    lengths = token_ids.argmax(dim=-1) + 1
    row_length = int(lengths.max()) if config.trim and len(lengths) else token_ids.shape[1]
    places = pack(lengths, row_length, share_rows=config.pack)
    return ArrangedTexts(token_ids=places.take(token_ids), places=places, inverse=inverse)


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

    def forward(self, texts: Tensor | ArrangedTexts) -> Tensor:
        """Token ids [N,T] int64, or the same arranged ahead -> features [N,C]. Errors as of `arrange_texts`."""
        if isinstance(texts, Tensor):
            texts = arrange_texts(texts, self.config)
        x = self.token_embedding(texts.token_ids) + F.embedding(texts.places.positions, self.positions)
        mask = texts.places.mask
        for block in self.blocks:
            x = block(x, mask=mask)
        features = self.norm(x.flatten(0, 1)[texts.places.ends])
        return features if texts.inverse is None else features[texts.inverse]
