"""Models of Hugging Face with random weights, and whether ours give the same."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import GroupViTConfig, GroupViTModel

from groupvit.model import GroupViT

TOLERANCE = 1e-4
END = 49_407
SMALL_HUGGING_FACE = {
    "projection_dim": 16,
    "projection_intermediate_dim": 32,
    "vision_config": {
        "image_size": 32,
        "patch_size": 8,
        "hidden_size": 32,
        "intermediate_size": 128,
        "depths": [1, 1, 1],
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_group_tokens": [6, 3, 0],
        "num_output_groups": [6, 3, 3],
    },
    "text_config": {
        "hidden_size": 32,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    },
}


@torch.no_grad()
def randomise(model: torch.nn.Module) -> None:
    """Fresh models have zero biases, unit norms and empty batch statistics, which would hide a mix-up."""
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith("running_mean") or (tensor.is_floating_point() and tensor.ndim == 1):
            tensor.add_(0.1 * torch.randn_like(tensor))
        elif name.endswith(("group_token", "position_embeddings")):
            tensor.normal_(std=0.5)


def some_texts(num_texts: int, context_length: int = 77) -> Tensor:
    """Random token ids of varied length, zero padded after the end token."""
    token_ids = torch.randint(1, END, (num_texts, context_length))
    for row, length in enumerate(torch.randint(3, context_length, (num_texts,)).tolist()):
        token_ids[row, length] = END
        token_ids[row, length + 1 :] = 0
    return token_ids


@torch.inference_mode()
def assert_same_outputs(ours: GroupViT, theirs: GroupViTModel, token_ids: Tensor) -> None:
    side = ours.config.image.image_size
    images = torch.randn(2, 3, side, side)
    expected = theirs(input_ids=token_ids, pixel_values=images)
    image_embeds = torch.nn.functional.normalize(ours.encode_image(images).embedding, dim=-1)
    text_embeds = torch.nn.functional.normalize(ours.encode_text(token_ids), dim=-1)
    logits = ours.logit_scale.exp() * image_embeds @ text_embeds.T
    torch.testing.assert_close(image_embeds, expected.image_embeds, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(text_embeds, expected.text_embeds, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(logits, expected.logits_per_image, atol=TOLERANCE, rtol=0)


def small_hugging_face(folder: Path) -> GroupViTModel:
    torch.manual_seed(0)
    model = GroupViTModel(GroupViTConfig(**SMALL_HUGGING_FACE)).eval()
    randomise(model)
    model.save_pretrained(folder)
    return model
