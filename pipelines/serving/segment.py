"""Segments images by words.

groupvit segment photo.jpg --checkpoint runs/demo --classes "dog, grass" --out segmented
groupvit segment photos/*.jpg --checkpoint runs/demo --classes "dog, grass" --out segmented --show-groups
groupvit segment photos --checkpoint runs/demo --classes "dog, grass" --out segmented --format coco-rle

The files of a single image are in `out` itself. Several images get a folder each in it, named after the image. Formats
of other tools are in `formats`.
"""

import contextlib
import dataclasses
import functools
import json
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
import tyro

from groupvit.checkpoint import load, load_state
from groupvit.config import PrecisionChoice, to_dict
from groupvit.precision import emulation_warning
from groupvit.protocols import protocol_of
from groupvit.segmentation import SegmentationConfig
from groupvit.segmenter import Segmented, Segmenter
from groupvit.tokenizer import Tokenizer
from groupvit.visualize import label_palette
from groupvit.words import BACKGROUND, parse_words
from pipelines import storage
from pipelines.console.progress import ProgressLine
from pipelines.errors import PartlyDone, require_at_least
from pipelines.local.writable import check_writable
from pipelines.runs.checkpoints import local_checkpoint
from pipelines.serving.batches import segmented
from pipelines.serving.formats.catalogue import OUTPUTS, Format
from pipelines.serving.formats.output import Output, Result
from pipelines.serving.formats.pictures import folders_of, write_pictures
from pipelines.serving.inputs import Picture, find_pictures, refuse_same_names

MAX_TOLD = 5
"""Number of failed images listed in the last line. All of them are printed when they fail, and are in the result."""
MAX_LINES = 20
"""Up to this number of images get a line each. More images get a progress line."""
IMAGES_PER_BATCH_ON_GPU = 8
SUMMARY = "segmentation.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentConfig:
    """Segments images by words.

    If one of several images cannot be read, the others are still segmented. The last line reports it, and the exit code
    is 1.
    """

    images: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Image files, folders (all images in them and below), or quoted patterns like "photos/**/*.jpg": local or s3://.
    Images are turned upright as their EXIF data says."""
    checkpoint: str
    """Folder of a checkpoint, or of a run (its newest checkpoint is used): a local path or s3:// URI."""
    classes: str
    """Words to look for, separated by commas, e.g. "dog, frisbee, grass"."""
    out: str = "segmented"
    """Folder, local or s3://, for the files of `format`. Formats other than png do not overwrite files."""
    format: Format = "png"
    """`png`: overlay.png (with a legend, at most 2048 pixels), labels.png (class indexes) and segmentation.json;
    several images get a folder each, named after the image (with -2, -3 ... if names are equal). `coco-rle`: coco.json,
    masks as COCO's run lengths. `label-studio`: label-studio.json, tasks with brushes to correct, and the labelling
    configuration label-studio.xml. `fiftyone`: a data set with copies of the images, and masks as PNG. `geojson`:
    NAME.geojson for each image, polygons along the edges of pixels. All but png also write one segmentation.json."""
    protocol: Literal["model", "paper"] = "model"
    """Protocol of the segmentation, as for `evaluate`."""
    background: bool = True
    """Whether pixels that match no word are background. --no-background: every pixel gets one of the words."""
    background_threshold: float | None = None
    """Pixels are background if the score of their best word is lower than this, 0 to 1. None: the protocol's."""
    precision: PrecisionChoice = "float32"
    """Precision of the image tower. float32 gives the same labels everywhere. `auto`: bfloat16 if this device computes
    it natively, else float32; faster, and edges of masks move."""
    batch_size: int | None = None
    """Number of images that are read and segmented together. None: 8 on a GPU, where they share passes of the image
    tower; 1 on CPUs, where masks have the same bits for any value."""
    show_groups: bool = False
    """Whether to draw the image's groups, too: groups_stage_1.png and so on, one per grouping stage. Only for png."""

    def __post_init__(self) -> None:
        if not self.images:
            raise ValueError("images is empty: give one or more image files, like photo.jpg")
        require_at_least(self, batch_size=1)
        if not self.background and self.background_threshold is not None:
            raise ValueError(
                f"background_threshold={self.background_threshold} with background=False: give one of them"
            )
        if self.show_groups and self.format != "png":
            raise ValueError(f"show_groups=True with format={self.format}: groups are drawn as png only")


def segment(config: SegmentConfig, segmentation: SegmentationConfig | None = None) -> dict[str, Any]:
    """Segments the images, writes the files, prints and returns each class's share of the pixels, in percent.

    `segmentation` replaces the protocol. Raises ValueError for invalid arguments. If some of several images cannot be
    segmented, raises PartlyDone after the others are written.
    """
    words = parse_words(config.classes)
    pictures = find_pictures(config.images, config.out)
    is_single = len(config.images) == 1 and pictures[0].uri == config.images[0]
    check_writable(config.out, "out")
    if config.format != "png":
        _check_names(config, pictures)
    with local_checkpoint(config.checkpoint) as folder:
        model = load(folder)
        segmentation = segmentation or protocol_of(config.protocol, model, load_state(folder))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    segmenter = Segmenter(model.to(device), segmentation, Tokenizer(), precision=config.precision)
    if (warning := emulation_warning(segmenter.precision, device)) is not None:
        print(warning, file=sys.stderr)
    used = segmenter.protocol(background=config.background, background_threshold=config.background_threshold)
    has_background = used.background_threshold is not None
    segmenter.check(words, background=has_background)

    names = [BACKGROUND, *words] if has_background else words
    colours = label_palette(len(names), has_background)
    about = {
        "names": names,
        "colours": {name: colours[label].tolist() for label, name in enumerate(names)},
        "checkpoint": config.checkpoint,
        "protocol": {"name": config.protocol, **to_dict(used)},
        "precision": segmenter.precision,
    }
    output = None if config.format == "png" else OUTPUTS[config.format](config.out, words, background=has_background)
    done, failed = _segment_all(config, segmenter, words, pictures, about, output, is_single=is_single)
    result: dict[str, Any] = {"out": config.out, "images": done, "failed": failed}
    if output is not None:
        result = {"format": config.format, **about, **result}
        storage.write_bytes(storage.join(config.out, SUMMARY), (json.dumps(result, indent=2) + "\n").encode())
    elif is_single:
        [result] = done
    if failed:
        told = list(failed.values())[:MAX_TOLD]
        more = [f"and {len(failed) - MAX_TOLD} more"] if len(failed) > MAX_TOLD else []
        reasons = "; ".join([*told, *more])
        raise PartlyDone(f"{len(failed)} of {len(pictures)} images were not segmented: {reasons}", result)
    return result


def _check_names(config: SegmentConfig, pictures: Sequence[Picture]) -> None:
    """Raises ValueError if files would get the same name, or exist already."""
    kind = OUTPUTS[config.format]
    refuse_same_names(pictures, with_ending=kind.keeps_endings, kind=config.format)
    existing = storage.list_sizes(config.out)
    if found := next((name for name in (SUMMARY, *kind.files(pictures)) if name in existing), None):
        raise ValueError(f"out={config.out} has {found} already: give another folder, or remove it")


def _segment_all(
    config: SegmentConfig,
    segmenter: Segmenter,
    words: Sequence[str],
    pictures: Sequence[Picture],
    about: dict[str, Any],
    output: Output | None,
    *,
    is_single: bool,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Segments and writes the images. Returns what is said of each, and the errors by URI of those that failed."""
    done: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    total, lines = len(pictures), len(pictures) <= MAX_LINES
    folders = iter([config.out] if is_single else folders_of(pictures, config.out))
    segment_all = functools.partial(
        segmenter.segment_all,
        words=words,
        background=config.background,
        background_threshold=config.background_threshold,
    )
    on_gpu = segmenter.model.logit_scale.device.type == "cuda"
    results = segmented(pictures, segment_all, config.batch_size or (IMAGES_PER_BATCH_ON_GPU if on_gpu else 1))
    try:
        with contextlib.nullcontext() if lines else ProgressLine("segmented", total, "images") as progress:
            for number, (picture, found) in enumerate(results, start=1):
                folder, heading = next(folders), f"[{number}/{total}] {picture.uri}"
                if isinstance(found, ValueError):
                    if is_single:
                        raise found
                    error = str(found)
                    failed[picture.uri] = error if picture.uri in error else f"{picture.uri}: {error}"
                    print(f"{heading}: not segmented ({error})", file=sys.stderr)
                else:
                    image, segmentation = found
                    summary = _summary(picture, segmentation)
                    if output is None:
                        summary = {"image": picture.uri, "out": folder} | summary | about
                        write_pictures(folder, image, segmentation, summary, show_groups=config.show_groups)
                    else:
                        output.add(Result(picture=picture, image=image, found=segmentation))
                    done.append(summary)
                    if lines:
                        _print(segmentation, None if is_single else heading)
                if progress is not None:
                    progress.add(1)
    finally:
        if output is not None and done:
            output.finish(about)
            if len(done) + len(failed) < total:
                print(f"out={config.out} has {len(done):,} of {total:,} images", file=sys.stderr)
    return done, failed


def _summary(picture: Picture, found: Segmented) -> dict[str, Any]:
    """Returns what segmentation.json says of an image."""
    shares = (round(100 * share, 2) for share in found.shares)
    return {
        "image": picture.uri,
        "size": [found.labels.shape[1], found.labels.shape[0]],
        "percent_of_pixels": dict(zip(found.names, shares, strict=True)),
    }


def _print(found: Segmented, heading: str | None) -> None:
    shares: Sequence[tuple[str, float]] = list(zip(found.names, found.shares, strict=True))
    if heading is None:
        print("\n".join(f"{100 * share:6.2f} %  {name}" for name, share in shares))
    else:  # one line per image
        print(f"{heading}: {', '.join(f'{name} {share:.0%}' for name, share in shares if share > 0)}", flush=True)
