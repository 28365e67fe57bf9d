"""Writes the exported folders that segment images by themselves: for `transformers`, and for ONNX Runtime.

Their code is `auto_model.py` and `onnx_runner.py`, with copies of the modules of `groupvit` that these import.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from groupvit.config import SegmentationConfig, to_dict
from groupvit.finishing import IMAGENET_MEAN, IMAGENET_STD
from groupvit.interop.model_card import LICENSE_KEY, UNKNOWN
from groupvit.interop.onnx import IMAGE_GRAPH, TEXT_GRAPH, export_onnx
from groupvit.model import GroupViT, clamped_scale
from groupvit.tokenizer import VOCABULARY_FILE
from pipelines.models.bundle import bundled
from pipelines.models.card import write_card

METADATA_FILE = "metadata.json"
MODELING, RUNNER, RUNNER_PACKAGE = "modeling_groupvit", "segment_onnx", "groupvit_runner"


def write_auto_model(
    model: GroupViT, segmentation: SegmentationConfig, folder: Path, *, origin: str, notice: str | None
) -> None:
    """Writes a folder for `transformers.AutoModel` and `AutoImageProcessor`, with their code."""
    config = {
        "architectures": ["GroupViTSegmenter"],
        "auto_map": {
            "AutoConfig": f"{MODELING}.GroupViTSegmenterConfig",
            "AutoModel": f"{MODELING}.GroupViTSegmenter",
        },
        "model_type": "groupvit_segmenter",
        "dtype": "float32",
        "groupvit": to_dict(model.config),
        "segmentation": to_dict(segmentation),
    }
    processor = {
        "auto_map": {"AutoImageProcessor": f"{MODELING}.GroupViTImageProcessor"},
        "image_processor_type": "GroupViTImageProcessor",
        "segmentation": to_dict(segmentation),
        "patch_size": model.config.image.patch_size,
        "context_length": model.config.text.context_length,
    }
    _write_json(folder / "config.json", config)
    _write_json(folder / "preprocessor_config.json", processor)
    weights = {f"groupvit.{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for name, source in bundled(Path(__file__).with_name("auto_model.py"), ".").items():
        (folder / (name or f"{MODELING}.py")).write_text(source, encoding="utf-8")
    _copy_vocabulary(folder)
    usage = (
        "`transformers.AutoModel.from_pretrained(DIR, trust_remote_code=True)` and "
        "`transformers.AutoImageProcessor.from_pretrained(DIR, trust_remote_code=True)`; the first lines of "
        f"`{MODELING}.py` show how. The code is that of `groupvit`, and the labels are those of `groupvit segment`. It "
        "needs PyTorch and transformers. The protocol of segmentation is in both JSON files."
    )
    write_card(model, folder, origin, notice, "GroupViT", usage, hugging_face=True)


def write_onnx(
    model: GroupViT, segmentation: SegmentationConfig, folder: Path, *, origin: str, notice: str | None
) -> None:
    """Writes both graphs, and the program that segments with them.

    Raises:
        ValueError: The graphs or the program do not support an option of the model or of its protocol.
    """
    for name, wanted in (("grouping", True), ("pamr_iterations", None)):
        if (value := getattr(segmentation, name)) != wanted:
            raise ValueError(
                f"segmentation.{name}={value} of the checkpoint has no counterpart in ONNX: export it to hf-auto"
            )
    metadata = {
        "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD),
        "image_size": model.config.image.image_size,
        "patch_size": model.config.image.patch_size,
        "context_length": model.config.text.context_length,
        "logit_scale": clamped_scale(model.logit_scale.detach()).item(),
        "multi_label_logit_scale": clamped_scale(model.multi_label_logit_scale.detach()).item(),
        "segmentation": to_dict(segmentation),
        LICENSE_KEY: notice or UNKNOWN,
    }
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    export_onnx(model, folder, texts)
    _write_json(folder / METADATA_FILE, metadata)
    (folder / RUNNER_PACKAGE).mkdir()
    for name, source in bundled(Path(__file__).with_name("onnx_runner.py"), f"{RUNNER_PACKAGE}.").items():
        (folder / (f"{RUNNER_PACKAGE}/{name}" if name else f"{RUNNER}.py")).write_text(source, encoding="utf-8")
    _copy_vocabulary(folder)
    usage = (
        f"`python {RUNNER}.py photo.jpg dog grass --out mask.png` gives the labels of `groupvit segment` without "
        "PyTorch; the first lines of the file say what to install, and how to use it from Python. "
        f"`{IMAGE_GRAPH}`: `image` [B,3,H,W] float32 to `image_embedding` [B,D], `segment_embeddings` [B,G,D] and "
        "`group_map` [B,G,h,w], the share of each image token in each segment. "
        f"`{TEXT_GRAPH}`: `token_ids` [N,T] int64, the largest id the end token, to `text_embedding` [N,D]. "
        f"Embeddings are not of unit length. B and N are free, H and W multiples of {model.config.image.patch_size}, T "
        f"at most {model.config.text.context_length}; for others the graphs fail. "
        f"`{METADATA_FILE}`: what cosines are multiplied with before the softmax, the protocol of segmentation, and "
        "the numbers above."
    )
    write_card(model, folder, origin, notice, "GroupViT as ONNX", usage)


def _copy_vocabulary(folder: Path) -> None:
    """Copies the vocabulary of the tokeniser and its licence."""
    for file in (VOCABULARY_FILE, VOCABULARY_FILE.with_name("bpe_simple_vocab_16e6.LICENSE")):
        shutil.copyfile(file, folder / file.name)


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
