"""Segments images by words.

groupvit segment photo.jpg --checkpoint runs/demo --classes "dog, grass" --out segmented
groupvit segment photos/*.jpg --checkpoint runs/demo --classes "dog, grass" --out segmented --show-groups

The files of a single image are in `out` itself. Several images get a folder each in it, named after the image.
"""

import dataclasses
import io
import json
import sys
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from numpy.typing import NDArray
from PIL import Image

from groupvit.checkpoint import load, load_state
from groupvit.config import Precision, PrecisionChoice, to_dict
from groupvit.precision import emulation_warning
from groupvit.protocols import protocol_of
from groupvit.segmentation import SegmentationConfig
from groupvit.segmenter import Segmented, Segmenter
from groupvit.tokenizer import Tokenizer
from groupvit.visualize import encode_labels, group_picture, label_palette, overlay, with_legend
from groupvit.words import parse_words
from pipelines import storage
from pipelines.errors import PartlyDone
from pipelines.local.writable import check_writable
from pipelines.runs.checkpoints import local_checkpoint
from pipelines.serving.images import read_picture

LONGEST_DRAWN = 2048
"""Largest number of pixels of the longer side of overlays and group pictures. Labels have the image's own size."""
MAX_TOLD = 5
"""Number of failed images listed in the last line. All of them are printed when they fail, and are in the result."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentConfig:
    """Segments images by words.

    If one of several images cannot be read, the others are still segmented. The last line reports it, and the exit code
    is 1.
    """

    images: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Image files: local paths or s3:// URIs. They are turned upright as their EXIF data says."""
    checkpoint: str
    """Folder of a checkpoint, or of a run (its newest checkpoint is used): a local path or s3:// URI."""
    classes: str
    """Words to look for, separated by commas, e.g. "dog, frisbee, grass"."""
    out: str = "segmented"
    """Folder, local or s3://, for overlay.png (with a legend, at most 2048 pixels), labels.png (class indexes)
    and segmentation.json. Several images get a folder each in it, named after the image (with -2, -3 ... if names are
    equal)."""
    protocol: Literal["model", "paper"] = "model"
    """Protocol of the segmentation, as for `evaluate`."""
    background: bool = True
    """Whether pixels that match no word are background. --no-background: every pixel gets one of the words."""
    background_threshold: float | None = None
    """Pixels are background if the score of their best word is lower than this, 0 to 1. None: the protocol's."""
    precision: PrecisionChoice = "auto"
    """Precision of the image tower. `auto`: bfloat16 if this CPU computes it natively, else float32."""
    show_groups: bool = False
    """Whether to draw the image's groups, too: groups_stage_1.png and so on, one per grouping stage."""

    def __post_init__(self) -> None:
        if not self.images:
            raise ValueError("images is empty: give one or more image files, like photo.jpg")
        if not self.background and self.background_threshold is not None:
            raise ValueError(
                f"background_threshold={self.background_threshold} with background=False: give one of them"
            )


def segment(config: SegmentConfig, segmentation: SegmentationConfig | None = None) -> dict[str, Any]:
    """Segments the images, writes the folders, prints and returns each class's share of the pixels, in percent.

    `segmentation` replaces the protocol. Raises ValueError for invalid arguments. If some of several images cannot be
    segmented, raises PartlyDone after the others are written.
    """
    words = parse_words(config.classes)
    check_writable(config.out, "out")
    with local_checkpoint(config.checkpoint) as folder:
        model = load(folder)
        segmentation = segmentation or protocol_of(config.protocol, model, load_state(folder))
    segmenter = Segmenter(model, segmentation, Tokenizer(), precision=config.precision)
    if (warning := emulation_warning(segmenter.precision, model.logit_scale.device)) is not None:
        print(warning, file=sys.stderr)
    used = segmenter.protocol(background=config.background, background_threshold=config.background_threshold)
    segmenter.check(words, background=used.background_threshold is not None)

    done: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    for number, (uri, out) in enumerate(zip(config.images, _folders(config), strict=True), start=1):
        try:
            image = read_picture(uri)
            found = segmenter.segment(
                image, words, background=config.background, background_threshold=config.background_threshold
            )
        except ValueError as error:
            if len(config.images) == 1:
                raise
            failed[uri] = str(error) if uri in str(error) else f"{uri}: {error}"
            print(f"[{number}/{len(config.images)}] {uri}: not segmented ({error})", file=sys.stderr)
            continue
        summary = _summary(uri, out, found, config, used, segmenter.precision)
        _write(out, image, found, summary, show_groups=config.show_groups)
        done.append(summary)
        _print(found, f"[{number}/{len(config.images)}] {uri}" if len(config.images) > 1 else None)
    result = done[0] if len(config.images) == 1 else {"out": config.out, "images": done, "failed": failed}
    if failed:
        told = list(failed.values())[:MAX_TOLD]
        more = [f"and {len(failed) - MAX_TOLD} more"] if len(failed) > MAX_TOLD else []
        reasons = "; ".join([*told, *more])
        raise PartlyDone(f"{len(failed)} of {len(config.images)} images were not segmented: {reasons}", result)
    return result


def _folders(config: SegmentConfig) -> list[str]:
    """Returns the output folder of each image. Names differ also on file systems that ignore case."""
    if len(config.images) == 1:
        return [config.out]
    taken: set[str] = set()
    folders: list[str] = []
    for uri in config.images:
        name = stem = PurePosixPath(uri).stem
        number = 1
        while name.casefold() in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.casefold())
        folders.append(storage.join(config.out, name))
    return folders


def _summary(
    uri: str, out: str, found: Segmented, config: SegmentConfig, used: SegmentationConfig, precision: Precision
) -> dict[str, Any]:
    """Returns the content of segmentation.json."""
    colours = label_palette(len(found.names), found.has_background)
    shares = (round(100 * share, 2) for share in found.shares)
    return {
        "image": uri,
        "out": out,
        "size": [found.labels.shape[1], found.labels.shape[0]],
        "names": list(found.names),
        "percent_of_pixels": dict(zip(found.names, shares, strict=True)),
        "colours": {name: colours[label].tolist() for label, name in enumerate(found.names)},
        "checkpoint": config.checkpoint,
        "protocol": {"name": config.protocol, **to_dict(used)},
        "precision": precision,
    }


def _write(out: str, image: NDArray[np.uint8], found: Segmented, summary: dict[str, Any], *, show_groups: bool) -> None:
    colours = label_palette(len(found.names), found.has_background)
    storage.write_bytes(storage.join(out, "labels.png"), encode_labels(found.labels, colours))
    image, labels = _drawn_size(image, found.labels)
    tinted = overlay(image, labels, colours, found.has_background)
    storage.write_bytes(storage.join(out, "overlay.png"), _png(with_legend(tinted, found.names, colours, labels)))
    for stage, group_map in enumerate(found.group_maps if show_groups else (), start=1):
        storage.write_bytes(storage.join(out, f"groups_stage_{stage}.png"), _png(group_picture(image, group_map)))
    storage.write_bytes(storage.join(out, "segmentation.json"), (json.dumps(summary, indent=2) + "\n").encode())


def _drawn_size(image: NDArray[np.uint8], labels: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    height, width = labels.shape
    scale = LONGEST_DRAWN / max(height, width)
    if scale >= 1:
        return image, labels
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    smaller = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    return np.asarray(smaller), np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))


def _print(found: Segmented, heading: str | None) -> None:
    shares: Sequence[tuple[str, float]] = list(zip(found.names, found.shares, strict=True))
    if heading is None:
        print("\n".join(f"{100 * share:6.2f} %  {name}" for name, share in shares))
    else:  # one line per image
        print(f"{heading}: {', '.join(f'{name} {share:.0%}' for name, share in shares if share > 0)}", flush=True)


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()
