"""Exports a checkpoint: for Hugging Face's transformers, as ONNX, or with the names of the released checkpoints.

    groupvit export --checkpoint runs/demo --to hf-auto --out exported/hf-auto
    groupvit export --checkpoint runs/demo --to hf --out exported/hf
    groupvit export --checkpoint runs/demo --to onnx --out exported/onnx
    groupvit export --checkpoint runs/demo --to official --out exported/official

Each folder has a card, README.md, with the licence notice of the checkpoint.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from groupvit.checkpoint import load, load_state
from groupvit.interop import official
from groupvit.interop.hugging_face import write_folder
from groupvit.interop.model_card import CARD_FILE, LICENSE_KEY, UNKNOWN, license_of, num_parameters
from groupvit.model import GroupViT
from groupvit.protocols import protocol_of
from pipelines.models.card import write_card
from pipelines.models.exported_code import write_auto_model, write_onnx
from pipelines.models.new_folder import new_folder
from pipelines.runs.checkpoints import local_checkpoint

OFFICIAL_NAME = "group_vit"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Exports a checkpoint to another format."""

    checkpoint: str
    """Folder of a checkpoint, or of a run (its newest checkpoint is used): a local path or s3:// URI."""
    to: Literal["hf-auto", "hf", "onnx", "official"]
    """`hf-auto`: a folder for `transformers.AutoModel.from_pretrained(DIR, trust_remote_code=True)`, with the labels of
    `segment`. `hf`: a folder for `transformers.GroupViTModel.from_pretrained`, with tokeniser and image processor, for
    embeddings. `onnx`: both encoders as graphs with any batch and image size, and segment_onnx.py, which gives the
    labels of `segment` without PyTorch. `official`: the names of the released checkpoints, as .pth and as
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
        elif config.to == "official":
            _write_official(model, folder, origin, notice)
        else:
            write = write_auto_model if config.to == "hf-auto" else write_onnx
            write(model, protocol_of("model", model, state), folder, origin=origin, notice=notice)
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        sizes = {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}
    large = {name: size for name, size in sizes.items() if "/" not in name}
    print(f"{config.out}: " + ", ".join(f"{name} ({size / 1e6:.1f} MB)" for name, size in large.items()))
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
    write_card(model, folder, origin, notice, "GroupViT under the names of the released checkpoints", usage)


def _origin(checkpoint: str, state: dict[str, Any]) -> str:
    name = checkpoint.rstrip("/").rpartition("/")[2]
    line = f"Exported from the checkpoint `{name}`, step {state.get('step', 'unknown')}."
    imported = state.get("imported_from")
    if isinstance(imported, dict):
        line += f" It was imported from `{imported.get('name')}` (sha256 `{imported.get('sha256')}`)."
    return line
