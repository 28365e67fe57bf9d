"""Writes and reads model folders of Hugging Face's `transformers`.

    config.json, model.safetensors            GroupViTModel
    preprocessor_config.json                  CLIPImageProcessor, with ImageNet's mean and standard deviation
    vocab.json, merges.txt, tokenizer_config.json   CLIPTokenizer
    README.md, LICENSE                        the card; the licence notice, if there is one

`transformers` is not needed: the config, tokenizer and card files are plain JSON and text.
"""

import json
import re
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from groupvit.finishing import IMAGENET_MEAN, IMAGENET_STD
from groupvit.interop import official
from groupvit.interop.foreign_weights import MAX_NOTICE, ForeignWeights, read_weights
from groupvit.interop.model_card import CARD_FILE, LICENSE_FILE, UNKNOWN, card
from groupvit.model import GroupViT
from groupvit.tokenizer import END_OF_TEXT, START_OF_TEXT, VOCABULARY_SIZE, byte_pairs

CONFIG_FILE, WEIGHTS_FILE, OLD_WEIGHTS_FILE = "config.json", "model.safetensors", "pytorch_model.bin"
SHARD_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
READ_FILES = (CONFIG_FILE, WEIGHTS_FILE, OLD_WEIGHTS_FILE, *SHARD_INDEXES, CARD_FILE, LICENSE_FILE)
"""Files that `read_folder` uses."""

_BILINEAR = 2  # PIL's number, as preprocessor_config.json expects
_MAX_TEXT_BYTES = 2**20


def write_folder(model: GroupViT, folder: Path, *, origin: str, license: str | None) -> None:
    """Write the files listed above into an existing folder.

    Raises:
        ValueError: The model uses an option that Hugging Face's model does not have.
    """
    config, weights = official.to_hugging_face(model)
    document = {"architectures": ["GroupViTModel"], "model_type": "groupvit", "dtype": "float32", **config}
    _write_json(folder / CONFIG_FILE, document)
    save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    _write_json(folder / "preprocessor_config.json", _preprocessor(model.config.image.image_size))
    if model.config.text.vocab_size == VOCABULARY_SIZE:
        _write_tokenizer(folder, model.config.text.context_length)
    usage = (
        "`transformers.GroupViTModel.from_pretrained(DIR)` and `transformers.AutoProcessor.from_pretrained(DIR)`. "
        "The tokeniser differs from the one of training in two ways: apply `groupvit.tokenizer.fix_text` first to "
        "texts that may hold HTML escapes or broken unicode, and it fills up with the end token, not with zeros "
        "(the model reads the first end token, so embeddings are the same). Hugging Face's segmentation output is not "
        "the protocol of the paper: it applies the logit scale twice and has no background rule. The logit scale of "
        "the multi-label loss has no place there and is left out."
    )
    text = card(model, title="GroupViT", origin=origin, license=license, usage=usage, hugging_face=True)
    (folder / CARD_FILE).write_text(text, encoding="utf-8")
    if license is not None:
        (folder / LICENSE_FILE).write_text(license + "\n", encoding="utf-8")


def read_folder(folder: Path) -> tuple[dict[str, Any], ForeignWeights]:
    """Read config.json and the weights of a folder, and the licence from its card or LICENSE.

    Raises:
        ValueError: A file is missing or corrupted.
    """
    if not (folder / CONFIG_FILE).is_file():
        raise ValueError(
            f"{folder} has no {CONFIG_FILE}: give a folder that save_pretrained made, or a file of weights"
        )
    try:
        config = json.loads(_text(folder / CONFIG_FILE))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{folder / CONFIG_FILE} is corrupted ({error}): fetch it again") from None
    if not isinstance(config, dict) or config.get("model_type", "groupvit") != "groupvit":
        raise ValueError(f"{folder / CONFIG_FILE} is not of a GroupViTModel: give a folder with model_type 'groupvit'")
    files = [folder / name for name in (WEIGHTS_FILE, OLD_WEIGHTS_FILE) if (folder / name).is_file()]
    shards = [name for name in SHARD_INDEXES if (folder / name).is_file()]
    if not files and shards:
        raise ValueError(
            f"{folder} has its weights in several files ({shards[0]}): save the model in one, with "
            "save_pretrained(DIR, max_shard_size='100GB')"
        )
    if not files:
        raise ValueError(f"{folder} has neither {WEIGHTS_FILE} nor {OLD_WEIGHTS_FILE}: save the model in one file")
    return config, ForeignWeights(tensors=read_weights(files[0]).tensors, license=_stated_license(folder))


def _stated_license(folder: Path) -> str | None:
    stated = _front_matter(_text(folder / CARD_FILE))
    kind = stated.get("license", "other")
    if kind == UNKNOWN:
        return UNKNOWN
    if kind != "other":
        return kind
    if text := _text(folder / LICENSE_FILE).strip():
        title = " ".join(text.partition("\n")[0].split())[:200]
        return " ".join(text.split()) if len(text) <= MAX_NOTICE else f"{title} (see the source's {LICENSE_FILE})"
    return " ".join(stated[key] for key in ("license_name", "license_link") if key in stated) or None


def _front_matter(text: str) -> dict[str, str]:
    """Parse the plain `key: value` lines between the first two `---` of a card."""
    block = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    pairs = (line.partition(":") for line in (block.group(1).splitlines() if block else []) if line[:1].strip())
    return {key.strip(): value.strip().strip("'\"") for key, _, value in pairs if value.strip()}


def _text(path: Path) -> str:
    """Read a small text file; "" if it does not exist."""
    if not path.is_file():
        return ""
    if path.stat().st_size > _MAX_TEXT_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, which no such file needs: remove it")
    return path.read_text(errors="replace", encoding="utf-8")


def _preprocessor(size: int) -> dict[str, Any]:
    return {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "CLIPProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": size * 8 // 7},
        "resample": _BILINEAR,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD),
    }


def _write_tokenizer(folder: Path, context_length: int) -> None:
    entries, merges = byte_pairs()
    start, end = "<|startoftext|>", "<|endoftext|>"
    vocabulary = {**entries, start: START_OF_TEXT, end: END_OF_TEXT}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text(
        "\n".join(["#version: 0.2", *(f"{a} {b}" for a, b in merges)]) + "\n", encoding="utf-8"
    )
    special = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end}
    names = {"tokenizer_class": "CLIPTokenizer", "processor_class": "CLIPProcessor", "model_max_length": context_length}
    _write_json(folder / "tokenizer_config.json", names | special)
    _write_json(folder / "special_tokens_map.json", special)


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
