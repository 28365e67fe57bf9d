"""Exports a checkpoint: for Hugging Face's transformers, as ONNX, or with the names of the released checkpoints.

    groupvit export --checkpoint runs/demo --to hf --out exported/hf
    groupvit export --checkpoint runs/demo --to onnx --out exported/onnx
    groupvit export --checkpoint runs/demo --to official --out exported/official

Each folder has a card, README.md, with the licence notice of the checkpoint.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from groupvit.checkpoint import load, load_state
from groupvit.finishing import IMAGENET_MEAN, IMAGENET_STD
from groupvit.interop import official
from groupvit.interop.hugging_face import write_folder
from groupvit.interop.model_card import CARD_FILE, LICENSE_FILE, LICENSE_KEY, UNKNOWN, card, license_of, num_parameters
from groupvit.interop.onnx import IMAGE_GRAPH, TEXT_GRAPH, export_onnx
from groupvit.losses import clamped_scale
from groupvit.model import GroupViT
from pipelines.models.new_folder import new_folder
from pipelines.runs.checkpoints import local_checkpoint

OFFICIAL_NAME = "group_vit"
METADATA_FILE = "metadata.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Exports a checkpoint to another format."""

    checkpoint: str
    """Folder of a checkpoint, or of a run (its newest checkpoint is used): a local path or s3:// URI."""
    to: Literal["hf", "onnx", "official"]
    """`hf`: a folder for `transformers.GroupViTModel.from_pretrained`, with tokeniser and image processor. `onnx`: both
    encoders as graphs with any batch and image size. `official`: the names of the released checkpoints, as .pth and as
    .safetensors."""
    out: str
    """Folder to create. It must not exist yet: a local path or s3:// URI."""


def export(config: ExportConfig) -> dict[str, Any]:
    """Writes the folder and returns a summary. Raises ValueError for invalid arguments or an invalid checkpoint."""
    with new_folder(config.out, last=CARD_FILE) as folder:
        with local_checkpoint(config.checkpoint) as source:
            model, state = load(source), load_state(source)
        notice, origin = license_of(state), _origin(config.checkpoint, state)
        folder.mkdir()
        if config.to == "hf":
            write_folder(model, folder, origin=origin, license=notice)
        elif config.to == "onnx":
            _write_onnx(model, folder, origin, notice)
        else:
            _write_official(model, folder, origin, notice)
        sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
    print(f"{config.out}: " + ", ".join(f"{name} ({size / 1e6:.1f} MB)" for name, size in sizes.items()))
    print(f"licence of the weights: {notice or 'none given'}")
    return {
        "out": config.out,
        "checkpoint": config.checkpoint,
        "to": config.to,
        "bytes": sizes,
        "parameters": num_parameters(model),
        "license": notice,
    }


def _write_official(model: GroupViT, folder: Path, origin: str, notice: str | None) -> None:
    weights = official.to_official(model)
    save_file(weights, folder / f"{OFFICIAL_NAME}.safetensors", metadata={LICENSE_KEY: notice or UNKNOWN})
    torch.save({"model": weights, LICENSE_KEY: notice or UNKNOWN}, folder / f"{OFFICIAL_NAME}.pth")
    heads = " ".join(map(str, model.config.image.num_heads))
    usage = (
        "Both files hold the same tensors, and neither tells the heads: "
        f"`groupvit import-weights {OFFICIAL_NAME}.pth --num-heads {heads} --out DIR` makes a checkpoint of either."
    )
    _write_card(model, folder, origin, notice, "GroupViT under the names of the released checkpoints", usage)


def _write_onnx(model: GroupViT, folder: Path, origin: str, notice: str | None) -> None:
    metadata = {
        "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD),
        "image_size": model.config.image.image_size,
        "patch_size": model.config.image.patch_size,
        "context_length": model.config.text.context_length,
        "logit_scale": clamped_scale(model.logit_scale.detach()).item(),
        "multi_label_logit_scale": clamped_scale(model.multi_label_logit_scale.detach()).item(),
        LICENSE_KEY: notice or UNKNOWN,
    }
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    export_onnx(model, folder, texts)
    (folder / METADATA_FILE).write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
    usage = (
        f"`{IMAGE_GRAPH}`: `image` [B,3,H,W] float32 to `image_embedding` [B,D], `segment_embeddings` [B,G,D] and "
        "`group_map` [B,G,h,w], the share of each image token in each segment. "
        f"`{TEXT_GRAPH}`: `token_ids` [N,T] int64, the largest id the end token, to `text_embedding` [N,D]. "
        f"Embeddings are not of unit length. B and N are free, H and W multiples of {model.config.image.patch_size}, T "
        f"at most {model.config.text.context_length}; for others the graphs fail. "
        f"`{METADATA_FILE}`: what cosines are multiplied with before the softmax, and the numbers above."
    )
    _write_card(model, folder, origin, notice, "GroupViT as ONNX", usage)


def _write_card(model: GroupViT, folder: Path, origin: str, notice: str | None, title: str, usage: str) -> None:
    text = card(model, title=title, origin=origin, license=notice, usage=usage)
    (folder / CARD_FILE).write_text(text, encoding="utf-8")
    if notice is not None:
        (folder / LICENSE_FILE).write_text(notice + "\n", encoding="utf-8")


def _origin(checkpoint: str, state: dict[str, Any]) -> str:
    name = checkpoint.rstrip("/").rpartition("/")[2]
    line = f"Exported from the checkpoint `{name}`, step {state.get('step', 'unknown')}."
    imported = state.get("imported_from")
    if isinstance(imported, dict):
        line += f" It was imported from `{imported.get('name')}` (sha256 `{imported.get('sha256')}`)."
    return line
