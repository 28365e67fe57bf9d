"""A small two-stage model and random batches for it."""

import torch

from groupvit.config import ImageEncoderConfig, ModelConfig, TextEncoderConfig
from groupvit.model import GroupViT
from groupvit.training import Batch

SMALL = ModelConfig(
    image=ImageEncoderConfig(
        image_size=32,
        patch_size=4,
        width=32,
        depths=(2, 1, 1),
        num_heads=(2, 2, 2),
        num_group_tokens=(8, 4, 0),
        num_output_groups=(8, 4),
    ),
    text=TextEncoderConfig(context_length=16, vocab_size=100, width=32, depth=2, num_heads=2),
    embedding_dim=16,
    projector_width=64,
)


def small_model(config: ModelConfig = SMALL, seed: int = 0) -> GroupViT:
    """A model with seeded random weights, without touching the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GroupViT(config)


def one_stage_model() -> GroupViT:
    """A model with one grouping stage and the whole vocabulary, always the same weights; in evaluation mode."""
    torch.manual_seed(0)
    image = ImageEncoderConfig(
        image_size=32,
        patch_size=8,
        width=32,
        depths=(1,),
        num_heads=(2,),
        num_group_tokens=(4,),
        num_output_groups=(4,),
    )
    text = TextEncoderConfig(context_length=20, width=32, depth=1, num_heads=2)
    return GroupViT(ModelConfig(image=image, text=text, embedding_dim=16, projector_width=32)).eval()


def random_batch(size: int, seed: int, num_prompts: int = 3) -> Batch:
    """Random images and texts of varied lengths; nouns repeat within the batch."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 98, (size, 1 + num_prompts, 16), generator=generator)
    ends = torch.randint(2, 16, (size, 1 + num_prompts, 1), generator=generator)
    ids = ids.scatter(2, ends, 99) * (torch.arange(16) <= ends)
    return Batch(
        images=torch.randn(size, 3, 32, 32, generator=generator),
        token_ids=ids,
        prompt_keys=torch.randint(0, 5, (size, num_prompts), generator=generator),
    )
