"""Packs several short texts into one row of tokens, so that no padding is computed.

Captions and noun prompts have 5 to 30 tokens, and the context has 77. A mask separates the texts of a row, so packing
does not change results.
Shapes: N texts, R rows, L tokens per row.
"""

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedTexts:
    """Positions of the tokens of N texts in R rows. All tensors are on the device of the lengths."""

    texts: Tensor
    """[R,L] int64: index of the token's text; -1 where there is no token."""
    positions: Tensor
    """[R,L] int64: position of the token in its text; 0 where there is no token."""
    ends: Tensor
    """[N] int64: index of each text's last token in the flattened rows."""

    def map(self, function: Callable[[Tensor], Tensor]) -> "PackedTexts":
        """Apply a function to each tensor, for example to copy it to another device."""
        return PackedTexts(texts=function(self.texts), positions=function(self.positions), ends=function(self.ends))

    @property
    def mask(self) -> Tensor:
        """[R,1,L,L] bool: True where a token may attend to another: itself and its predecessors in the same text."""
        same_text = self.texts[:, None, :, None] == self.texts[:, None, None, :]
        return same_text.tril()

    def take(self, token_ids: Tensor) -> Tensor:
        """Pack token ids [N,T] -> [R,L]. Positions without a token hold an arbitrary id."""
        return token_ids[self.texts.clamp(min=0), self.positions]


def pack(lengths: Tensor, row_length: int, *, share_rows: bool = True) -> PackedTexts:
    """Assign texts of these lengths ([N] int64, 1 to `row_length`) to rows. Without `share_rows`: one text per row."""
    as_list = lengths.tolist()
    rows = _fill_rows(as_list, row_length) if share_rows else [[text] for text in range(len(as_list))]
    starts_list = [0] * len(as_list)
    for index, row in enumerate(rows):
        start = index * row_length
        for text in row:
            starts_list[text] = start
            start += as_list[text]
    starts = torch.tensor(starts_list, device=lengths.device)
    token_texts = torch.repeat_interleave(lengths)  # [tokens]: index 0 once for each token of the first text, and so on
    token_positions = torch.arange(len(token_texts), device=lengths.device)
    token_positions = token_positions - (lengths.cumsum(0) - lengths)[token_texts]
    slots = starts[token_texts] + token_positions
    texts = lengths.new_full((len(rows) * row_length,), -1).scatter_(0, slots, token_texts)
    positions = torch.zeros_like(texts).scatter_(0, slots, token_positions)
    return PackedTexts(
        texts=texts.view(-1, row_length), positions=positions.view(-1, row_length), ends=starts + lengths - 1
    )


def _fill_rows(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Choose the texts of each row: the longest that remains, then as many of the shortest as fit."""
    by_length = sorted(range(len(lengths)), key=lambda text: -lengths[text])
    rows: list[list[int]] = []
    longest, shortest = 0, len(by_length) - 1
    while longest <= shortest:
        row = [by_length[longest]]
        space = row_length - lengths[row[0]]
        longest += 1
        while longest <= shortest and lengths[by_length[shortest]] <= space:
            row.append(by_length[shortest])
            space -= lengths[by_length[shortest]]
            shortest -= 1
        rows.append(row)
    return rows
