"""The small models of all tests, and random batches. A test that needs another one replaces a field or two."""

from collections.abc import Iterable
from dataclasses import replace

import torch

from groupvit.config import ImageEncoderConfig, LossConfig, ModelConfig, TextEncoderConfig
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

WORDS = replace(
    SMALL,
    image=replace(
        SMALL.image, patch_size=8, depths=(1, 1), num_heads=(2, 2), num_group_tokens=(8, 4), num_output_groups=(8, 4)
    ),
    text=TextEncoderConfig(context_length=20, width=32, depth=1, num_heads=2),
    projector_width=32,
)
"""Reads words: the tokeniser's whole vocabulary. Both its stages have a grouping block."""
OFFICIAL = replace(
    WORDS,
    image=replace(WORDS.image, width=64, depths=(1, 1, 1), num_heads=(1, 1, 1), num_group_tokens=(8, 4, 0)),
    text=TextEncoderConfig(width=64, depth=1, num_heads=1),
)
"""Of the released models' make, down to heads of 64 channels, so that it goes into every format."""
LOSSES = {
    "paper": LossConfig(),
    "no prompts": LossConfig(num_prompts=0),
    "shared positives": LossConfig(shared_positives=True),
    "segments": LossConfig(shared_positives=True, multi_label_match="segments"),
    "mixture": LossConfig(multi_label_match="mixture"),
    "mixture without prompts": LossConfig(num_prompts=0, multi_label_match="mixture"),
}
"""One loss of each kind."""


def small_model(config: ModelConfig = SMALL, seed: int = 0) -> GroupViT:
    """A model with seeded random weights, without touching the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GroupViT(config)


def distinct_model(config: ModelConfig = WORDS, seed: int = 0) -> GroupViT:
    """Larger weights than at the start of training, so that groups and classes differ."""
    model = small_model(config, seed)
    enlarge(parameter for name, parameter in model.named_parameters() if "text" not in name)
    return model


def enlarge(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Makes weights larger than at the start of training, so that images, groups and classes differ."""
    with torch.no_grad():
        for parameter in parameters:
            if parameter.dim() > 1:
                parameter.mul_(6)


def one_stage_model() -> GroupViT:
    """WORDS with one grouping stage, always the same weights; in evaluation mode."""
    image = replace(WORDS.image, depths=(1,), num_heads=(2,), num_group_tokens=(4,), num_output_groups=(4,))
    return small_model(replace(WORDS, image=image)).eval()


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
