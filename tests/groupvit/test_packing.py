"""Packed texts lie side by side, each whole, and look only at themselves."""

import torch

from groupvit.packing import pack

LENGTHS = [3, 7, 1, 4, 8, 2, 2]
ROW = 8


def test_every_token_has_one_place() -> None:
    packed = pack(torch.tensor(LENGTHS), ROW)
    token_ids = torch.arange(len(LENGTHS) * ROW).view(len(LENGTHS), ROW)
    rows = packed.take(token_ids).flatten()
    for text, length in enumerate(LENGTHS):
        end = int(packed.ends[text])
        assert torch.equal(rows[end + 1 - length : end + 1], token_ids[text, :length])
        assert torch.equal(packed.positions.flatten()[end + 1 - length : end + 1], torch.arange(length))
    assert int((packed.texts >= 0).sum()) == sum(LENGTHS)


def test_rows_are_full() -> None:
    assert len(pack(torch.tensor(LENGTHS), ROW).texts) == 4  # 27 tokens in rows of 8
    assert len(pack(torch.tensor(LENGTHS), ROW, share_rows=False).texts) == len(LENGTHS)


def test_mask_is_causal_within_a_text() -> None:
    packed = pack(torch.tensor(LENGTHS), ROW)
    expected = torch.zeros(len(packed.texts), 1, ROW, ROW, dtype=torch.bool)
    for row, texts in enumerate(packed.texts.tolist()):
        for query in range(ROW):
            for key in range(query + 1):
                expected[row, 0, query, key] = texts[query] == texts[key]
    assert torch.equal(packed.mask, expected)
    assert packed.mask.any(dim=-1).all()  # also in padding, or the softmax is not a number
