"""Writes model cards (README.md beside the weights), and keeps the licence notice of weights.

A checkpoint stores the notice in state.json under `license`. Weights trained here have none.
"""

from collections.abc import Mapping
from typing import Any

from groupvit.config import ModelConfig
from groupvit.finishing import IMAGENET_MEAN, IMAGENET_STD
from groupvit.model import GroupViT

CARD_FILE, LICENSE_FILE = "README.md", "LICENSE"
LICENSE_KEY = "license"
UNKNOWN = "unknown"
"""Licence in an exported file or card if there is no notice. A file that states no licence is a different case."""

RELEASED_NOTICE = (
    "NVIDIA Source Code License-NC: the released GroupViT weights (copyright NVIDIA Corporation) and what is derived "
    "from them may be used non-commercially only, for research or evaluation. See the LICENSE of "
    "https://github.com/NVlabs/GroupViT."
)


def license_of(state: Mapping[str, Any]) -> str | None:
    """Licence notice in a checkpoint's state.json; None if there is none."""
    notice = state.get(LICENSE_KEY)
    return notice if isinstance(notice, str) and notice.strip() else None


def card(
    model: GroupViT, *, title: str, origin: str, license: str | None, usage: str, hugging_face: bool = False
) -> str:
    """Write the text of a model card. `origin`: where the weights come from. `usage`: how to use the folder."""
    notice = license or "None was given with these weights."
    front_matter = ["---", *_front_matter(license), "---", ""] if hugging_face else []
    lines = [
        *front_matter,
        f"# {title}",
        "",
        "GroupViT (arXiv 2202.11094) segments images by words; it learns from images with captions, without masks.",
        "",
        "## Origin",
        origin,
        "",
        "## Sizes",
        *_sizes(model),
        "",
        "## Input",
        f"RGB in 0 to 1, normalised with ImageNet's mean {_numbers(IMAGENET_MEAN)} and standard deviation "
        f"{_numbers(IMAGENET_STD)}, **not CLIP's**; sides are multiples of {model.config.image.patch_size} pixels.",
        f"Texts are CLIP's byte pairs, at most {model.config.text.context_length} tokens with start and end.",
        "",
        "## Use",
        usage,
        "",
        "## Licence of the weights",
        notice,
        "",
    ]
    return "\n".join(lines)


def num_parameters(model: GroupViT) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _front_matter(license: str | None) -> list[str]:
    if license is None:
        return [f"license: {UNKNOWN}"]
    return ["license: other", "license_name: see-license-file", f"license_link: {LICENSE_FILE}"]


def _sizes(model: GroupViT) -> list[str]:
    config: ModelConfig = model.config
    image, text = config.image, config.text
    rows = {
        "parameters": f"{num_parameters(model):,}",
        "training image": f"{image.image_size} x {image.image_size} pixels, image tokens of {image.patch_size}",
        "image encoder": f"width {image.width}, blocks per stage {_numbers(image.depths)}, "
        f"heads {_numbers(image.num_heads)}",
        "group tokens per stage": _numbers(image.num_group_tokens),
        "segment tokens per grouping block": _numbers(image.num_output_groups),
        "text encoder": f"width {text.width}, {text.depth} blocks, {text.num_heads} heads, "
        f"{text.vocab_size:,} tokens in the vocabulary",
        "shared space": f"{config.embedding_dim} channels",
    }
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(map(str, values))
