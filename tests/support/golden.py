"""The reference implementation's outputs with random weights (tests/data/golden), held against a model."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from groupvit.model import GroupViT
from groupvit.segmentation import segment_logits

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
TOLERANCE = 1e-5
THRESHOLDS = {"background_0.95": 0.95, "background_0.35": 0.35, "no_background": None}


def golden_tensors(name: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / f"{name}.safetensors")


def golden_encoder(name: str) -> dict[str, Any]:
    """The reference's config of the image encoder."""
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        return json.loads(file.metadata()["image_encoder"])


def golden_weights(name: str) -> dict[str, Tensor]:
    """With the released checkpoints' names."""
    tensors = golden_tensors(name)
    return {key.removeprefix("weights/"): value for key, value in tensors.items() if key.startswith("weights/")}


@torch.inference_mode()
def outputs(model: GroupViT, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the model makes of the golden inputs, under the golden names."""
    encoding = model.encode_image(tensors["input/image"])
    token_ids = tensors["input/text"]
    texts = model.encode_text(token_ids.flatten(0, 1)).unflatten(0, token_ids.shape[:2])
    made = {
        "encoder/pooled": encoding.features.pooled,
        "encoder/segment_tokens": encoding.features.segment_tokens,
        "embed/image": encoding.embedding,
        "embed/segments": encoding.segment_embeddings,
        "embed/caption": texts[:, 0],
        "embed/prompts": texts[:, 1:],
    }
    for stage, (soft, hard) in enumerate(zip(encoding.soft_assignments, encoding.hard_assignments, strict=True)):
        made |= {f"encoder/soft_assignment_{stage}": soft, f"encoder/hard_assignment_{stage}": hard}
    classes = tensors["seg/class_embeddings"]
    for name, threshold in THRESHOLDS.items():
        made[f"seg/logits_{name}"] = segment_logits(model, tensors["input/image_rect"], classes, threshold)
    return made


def assert_golden(model: GroupViT, name: str) -> None:
    """Every golden tensor of the encoder, the embeddings and the segmentation is reproduced."""
    tensors = golden_tensors(name)
    made = outputs(model, tensors)
    expected = {key for key in tensors if key.startswith(("encoder/", "embed/", "seg/"))} - {"seg/class_embeddings"}
    assert made.keys() == expected
    for key, value in made.items():
        assert_near(value, tensors[key], key)


def assert_near(actual: Tensor, expected: Tensor, name: str = "") -> None:
    """Equal within 1e-5, and 1e-5 of an entry's size.

    Embeddings are not normalised: entries go up to 8, and rounding errors grow with them. Another order of the sums in
    a matrix product, as another instruction set brings, moves them by 7e-6 of their size.
    """
    torch.testing.assert_close(
        actual.detach(), expected, atol=TOLERANCE, rtol=TOLERANCE, msg=lambda text: f"{name}: {text}"
    )
