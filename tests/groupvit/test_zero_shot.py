"""Class embeddings against the definition, with real tokens and random weights."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from groupvit.model import GroupViT
from groupvit.tokenizer import Tokenizer
from groupvit.zero_shot import class_embeddings, classify
from tests.support.small_model import WORDS, small_model

TEMPLATES = ("a photo of a {}.", "itap of a {}.", "a bad photo of the {}, at night.")
CLASSES = ("dog", "traffic light", "grass")


@pytest.fixture(scope="module")
def model() -> GroupViT:
    image = replace(WORDS.image, depths=(1,), num_heads=(2,), num_group_tokens=(0,), num_output_groups=())
    return small_model(replace(WORDS, image=image)).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer()


def test_mean_of_unnormalised_texts_then_unit_length(model: GroupViT, tokenizer: Tokenizer) -> None:
    embeddings = class_embeddings(model, tokenizer, CLASSES, TEMPLATES)
    assert embeddings.shape == (3, 16)
    for name, embedding in zip(CLASSES, embeddings, strict=True):
        ids = torch.from_numpy(tokenizer([template.format(name) for template in TEMPLATES], 20)).long()
        with torch.inference_mode():
            texts = model.encode_text(ids)
        torch.testing.assert_close(embedding, F.normalize(texts.mean(dim=0), dim=-1))
        clip_like = F.normalize(F.normalize(texts, dim=-1).mean(dim=0), dim=-1)
        assert (embedding - clip_like).abs().max() > 1e-4


def test_more_texts_than_a_batch_keep_their_order(model: GroupViT, tokenizer: Tokenizer) -> None:
    many = [f"thing {number}" for number in range(300)]
    embeddings = class_embeddings(model, tokenizer, many)
    torch.testing.assert_close(
        embeddings[270:271], class_embeddings(model, tokenizer, many[270:271]), atol=1e-5, rtol=0
    )


def test_classify_is_scaled_cosine_with_the_scale_capped() -> None:
    classes = torch.eye(3)
    logits = classify(torch.tensor([[3.0, 0.0, 4.0]]), classes, torch.tensor(0.0))
    torch.testing.assert_close(logits, torch.tensor([[0.6, 0.0, 0.8]]))
    capped = classify(torch.tensor([[0.0, 2.0, 0.0]]), classes, torch.tensor(9.0))
    torch.testing.assert_close(capped, torch.tensor([[0.0, 100.0, 0.0]]))


def test_bad_lists_and_templates_are_refused(model: GroupViT, tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="0 classes"):
        class_embeddings(model, tokenizer, [])
    with pytest.raises(ValueError, match="prompt template 'a photo'"):
        class_embeddings(model, tokenizer, CLASSES, ("a photo",))


def test_a_class_of_several_words_is_the_mean_over_all_of_them(model: GroupViT, tokenizer: Tokenizer) -> None:
    together = class_embeddings(model, tokenizer, ["dog", ("dog", "a puppy")], ("a photo of a {}.", "{}"))
    texts = ["a photo of a dog.", "dog", "a photo of a a puppy.", "a puppy"]
    ids = torch.from_numpy(tokenizer(texts, model.config.text.context_length).astype(np.int64))
    with torch.inference_mode():
        embedded = model.encode_text(ids)
    expected = torch.stack([embedded[:2].mean(dim=0), embedded.mean(dim=0)])
    torch.testing.assert_close(together, F.normalize(expected, dim=-1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_scores_that_are_not_finite_are_refused(value: float) -> None:
    embeddings = torch.ones(2, 3)
    embeddings[1, 2] = value  # 1e30 is finite, and its square is not: the length is infinite, all similarities are 0
    with pytest.raises(ValueError, match="4 of 8 scores are not finite, the first of class number 0"):
        classify(embeddings, torch.eye(4, 3), torch.tensor(0.0))
    with pytest.raises(ValueError, match="1 of 4 scores are not finite, the first of class number 3"):
        classify(torch.ones(3), torch.cat([torch.eye(3), torch.full((1, 3), torch.nan)]), torch.tensor(0.0))
    with pytest.raises(ValueError, match="6 of 6 scores are not finite"):
        classify(torch.ones(2, 3), torch.eye(3), torch.tensor(torch.nan))


def test_the_class_whose_embedding_is_not_finite_is_named(model: GroupViT, tokenizer: Tokenizer) -> None:
    broken = copy.deepcopy(model)
    _, cat, _ = tokenizer(["cat"], 3)[0]  # between start and end
    with torch.no_grad():
        broken.text_encoder.token_embedding.weight[int(cat)] = torch.nan
    with pytest.raises(ValueError, match=r"the embedding of class \('dog', 'cat'\) is not finite"):
        class_embeddings(broken, tokenizer, ["dog", ("dog", "cat"), "cat"])
    with torch.no_grad():
        broken.text_projector.out.weight.fill_(1e30)  # finite, but the length of the embedding is not
    with pytest.raises(ValueError, match="the embedding of class 'dog' is not finite"):
        class_embeddings(broken, tokenizer, ["dog"])
