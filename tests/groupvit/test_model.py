"""The model: parameter counts of the paper's size, and batch statistics shared across workers."""

import torch

from groupvit.config import ModelConfig
from groupvit.model import GroupViT
from tests.support.small_model import small_model


def test_the_papers_model_has_the_papers_parameters() -> None:
    with torch.device("meta"):
        model = GroupViT(ModelConfig())
    counts = {name: sum(p.numel() for p in child.parameters()) for name, child in model.named_children()}
    assert counts == {
        "image_encoder": 28_837_136,
        "text_encoder": 22_145_792,
        "image_projector": 2_633_984,
        "text_projector": 2_109_696,
    }
    assert sum(p.numel() for p in model.parameters()) == 55_726_610


def test_without_grouping_every_image_token_is_embedded() -> None:
    model = small_model().eval()
    images = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    encoding = model.encode_image(images)
    assert model.embed_image_tokens(encoding.features.image_tokens).shape == (2, 8 * 12, 16)
    for soft, hard in zip(encoding.soft_assignments, encoding.hard_assignments, strict=True):
        torch.testing.assert_close(soft.sum(dim=1), torch.ones_like(soft.sum(dim=1)))
        assert torch.equal(soft.argmax(dim=1), hard.argmax(dim=1))
