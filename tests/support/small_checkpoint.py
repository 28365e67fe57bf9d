"""A small model that tells groups and classes apart: random, and taught to name what is in some photos."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from groupvit.checkpoint import save
from groupvit.config import SegmentationConfig
from groupvit.decode import decode_image
from groupvit.model import GroupViT
from groupvit.segmentation import pixel_groups
from groupvit.tokenizer import Tokenizer
from groupvit.windows import encode_views
from groupvit.zero_shot import class_embeddings
from tests.support.miniatures import Photo
from tests.support.small_model import WORDS, small_model

TAUGHT = {5: "bottle", 6: "bus", 7: "car", 9: "chair", 15: "person", 18: "sofa", 0: "wall"}
"""VOC's values in the photos, and a word for each; the last is for groups that have nothing of the others."""


def contrasting_model() -> GroupViT:
    """Two grouping stages, 16-pixel patches, images of 64 pixels; larger weights than at the start of training."""
    image = replace(WORDS.image, image_size=64, patch_size=16, num_group_tokens=(8, 8), num_output_groups=(8, 8))
    model = small_model(replace(WORDS, image=image, embedding_dim=64, projector_width=256))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and (not name.startswith("text_encoder") or "token_embedding" in name):
                parameter.mul_(10)
        model.logit_scale.fill_(math.log(100))
    return model.eval()


def write_small_checkpoint(folder: Path, photos: Sequence[Photo] = (), state: dict[str, Any] | None = None) -> str:
    """The model, taught what is in the photos if there are any."""
    model = contrasting_model()
    if photos:
        teach(model, photos)
    save(folder, model, state=state)
    return str(folder)


@torch.inference_mode()
def teach(
    model: GroupViT,
    photos: Sequence[Photo],
    config: SegmentationConfig | None = None,
    taught: Mapping[int, str] = TAUGHT,
) -> None:
    """Solves the image projector's last layer so that each group is of the class of which it has the largest share.

    `config`: how the photos are cut into windows. None: as in the paper, and crops of the photos are taught, too."""
    tokenizer, out = Tokenizer(), model.text_projector.out
    ids = tokenizer([f"a photo of a {word}." for word in taught.values()], model.config.text.context_length)
    out.bias.sub_(model.encode_text(torch.from_numpy(ids.astype(np.int64))).mean(dim=0))  # words differ in direction
    words = class_embeddings(model, tokenizer, list(taught.values()))
    hidden: list[Tensor] = []
    hook = model.image_projector.out.register_forward_hook(lambda _, given, __: hidden.append(given[0]))
    targets: list[Tensor] = []
    whole = [(decode_image(photo.jpeg), photo.values) for photo in photos]
    crops = [(decode_image(photo.crop[0]), photo.crop[1]) for photo in photos] if config is None else []
    for image, values in whole + crops:
        [[view]] = encode_views(model, [image], config or SegmentationConfig())
        rows, columns = (np.arange(new) * old // new for old, new in zip(values.shape, view.size, strict=True))
        values = values[rows][:, columns]
        for window in view.windows:
            top, bottom, left, right = window.box
            groups, truth = pixel_groups(window).numpy(), values[top:bottom, left:right]
            shares = [
                [
                    ((groups == group) & (truth == value)).sum() / max((truth == value).sum(), 1)
                    for value in taught
                    if value
                ]
                for group in range(8)
            ]
            best = [int(np.argmax(share)) if max(share) > 0.05 else -1 for share in shares]
            targets.append(torch.cat([words[list(set(best))].mean(dim=0, keepdim=True), words[best]]))
    hook.remove()
    inputs = torch.cat(hidden)
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1)
    solution = torch.linalg.lstsq(inputs, torch.cat(targets), driver="gelsd").solution
    model.image_projector.out.weight.copy_(solution[:-1].T)
    model.image_projector.out.bias.copy_(solution[-1])
