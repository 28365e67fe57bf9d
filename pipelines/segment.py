"""Segments one image by words.

groupvit segment --checkpoint runs/demo photo.jpg --classes "dog, grass" --out segmented
"""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from PIL import Image, ImageOps, UnidentifiedImageError

from groupvit.checkpoint import load, load_state
from groupvit.segmentation import SegmentationConfig, predict, predict_groups
from groupvit.tokenizer import Tokenizer
from groupvit.visualize import Example, label_palette, overlay, page
from groupvit.zero_shot import class_embeddings
from pipelines.benchmarks.dataset import BACKGROUND
from pipelines.checkpoints import local_checkpoint
from pipelines.evaluate import protocol_of
from pipelines.scoring import encode_labels


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentConfig:
    """Which image is segmented by which words, and where pictures go."""

    image: Annotated[str, tyro.conf.Positional]
    """Image file."""
    checkpoint: str
    """Folder of a checkpoint, or of a run (its newest checkpoint is taken): a local path or s3:// URI."""
    classes: str
    """Words to look for, with commas between them, like "dog, grass"."""
    out: str = "segmented"
    """Folder for labels.png (class indexes), overlay.png and overview.png (with the groups of each stage)."""
    protocol: Literal["model", "paper"] = "model"
    """How images are segmented, as for `evaluate`."""
    background: bool = True
    """Whether pixels that suit no word are background. False: every pixel gets one of the words."""
    background_threshold: float | None = None
    """Pixels whose best word scores less are background. None: as the protocol says."""


def segment(config: SegmentConfig, segmentation: SegmentationConfig | None = None) -> dict[str, Any]:
    """Segments the image, writes the folder, prints and returns each class's share of the pixels, in percent.

    `segmentation` replaces the protocol. ValueError for what the user got wrong.
    """
    words = [word.strip() for word in config.classes.split(",") if word.strip()]
    if not words or len(words) > 254 or len(set(words)) < len(words):
        raise ValueError(f'classes={config.classes!r}: give 1 to 254 different words, like --classes "dog, grass"')
    pixels = _read_image(config.image)
    with local_checkpoint(config.checkpoint) as folder:
        model = load(folder)
        segmentation = segmentation or protocol_of(config.protocol, model, load_state(folder))
    if not config.background:
        segmentation = dataclasses.replace(segmentation, background_threshold=None, background_prompts=())
    elif config.background_threshold is not None:
        segmentation = dataclasses.replace(segmentation, background_threshold=config.background_threshold)

    tokenizer, templates = Tokenizer(), segmentation.templates
    background = None
    if segmentation.background_prompts:
        background = class_embeddings(model, tokenizer, segmentation.background_prompts, templates)
    classes = class_embeddings(model, tokenizer, words, templates)
    [labels] = predict(model, pixels, classes, segmentation, background_embeddings=background)

    has_background = segmentation.background_threshold is not None
    names = [BACKGROUND, *words] if has_background else words
    colours = label_palette(len(names), has_background)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "labels.png").write_bytes(encode_labels(labels, colours))
    overlay(pixels, labels, colours, has_background).save(out / "overlay.png")
    groups = predict_groups(model, pixels, segmentation)
    example = Example(title=Path(config.image).name, image=pixels, prediction=labels, group_maps=groups)
    page([example], names, has_background=has_background, cell=360).save(out / "overview.png")
    counts = np.bincount(labels.ravel(), minlength=len(names))
    shares = {name: round(100 * int(count) / labels.size, 2) for name, count in zip(names, counts, strict=True)}
    print("\n".join(f"{share:6.2f} %  {name}" for name, share in shares.items()))
    summary = {"image": config.image, "out": str(out), "percent_of_pixels": shares}
    (out / "segmentation.json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def _read_image(path: str) -> np.ndarray:
    """RGB uint8 [H, W, 3], upright as its camera noted."""
    try:
        with Image.open(path) as image:
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except FileNotFoundError:
        raise ValueError(f"image={path} does not exist: give an image file") from None
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"image={path} cannot be read ({error}): give a whole JPEG, PNG or WebP") from None
