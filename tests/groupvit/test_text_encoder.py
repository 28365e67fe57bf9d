"""The text tower: trimming, packing and de-duplication are exact."""

import dataclasses

import pytest
import torch

from groupvit.text_encoder import TextEncoder, arrange_texts
from tests.support.small_model import SMALL, random_batch


def test_trimming_packing_and_deduplication_change_nothing() -> None:
    torch.manual_seed(0)
    texts = random_batch(6, 0).token_ids.flatten(0, 1)
    texts = torch.cat([texts, texts[[3, 3, 0]]])
    plain = TextEncoder(dataclasses.replace(SMALL.text, trim=False, pack=False, deduplicate=False))
    fast = TextEncoder(SMALL.text)
    fast.load_state_dict(plain.state_dict())
    features = [encoder(texts) for encoder in (plain, fast)]
    cotangent = torch.randn_like(features[0])
    for output in features:
        output.backward(cotangent)
    torch.testing.assert_close(features[0], features[1], rtol=1e-5, atol=1e-5)
    for (name, expected), actual in zip(plain.named_parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad, rtol=1e-4, atol=1e-4, msg=name)
    assert torch.equal(features[1][3], features[1][-2])


@pytest.mark.parametrize("deduplicate", [True, False])
def test_texts_arranged_ahead_give_the_same_bits(deduplicate: bool) -> None:
    encoder = TextEncoder(dataclasses.replace(SMALL.text, deduplicate=deduplicate))
    texts = random_batch(6, 0).token_ids.flatten(0, 1)
    texts = torch.cat([texts, texts[[3, 3, 0]]])
    copied = arrange_texts(texts, encoder.config).map(torch.clone)
    assert torch.equal(encoder(copied), encoder(texts))


def test_what_follows_the_end_token_does_not_matter() -> None:
    encoder = TextEncoder(dataclasses.replace(SMALL.text, trim=False))
    texts = torch.tensor([[5, 6, 99, 0, 0, 0], [5, 6, 99, 7, 8, 9]])
    features = encoder(texts)
    torch.testing.assert_close(features[0], features[1])


def test_texts_longer_than_the_context_are_refused() -> None:
    with pytest.raises(ValueError, match="context_length=16"):
        TextEncoder(SMALL.text)(torch.ones(1, 17, dtype=torch.int64))
