"""The `stamps` demo data: real photo cut-outs composed on real photos. Run: `groupvit demo-data stamps --out DIR`.

The pixels come from Debian packages: Tux Paint's stamps (GPL-2), whose alpha channel is the exact mask, and desktop
wallpapers. They are downloaded with apt's tools on first use and kept in the user's cache. None of them is part of this
repository. `stamps.json` beside this file lists them.

What is held out is determined by position in those lists, not by results. Of each class, every fourth cut-out is never
seen in training. Of the backgrounds that show none of the classes, every third is used in validation only.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from pipelines.demo.compose import Background, Cutout, make_cutout
from pipelines.demo.material import Material
from pipelines.demo.packages import unpack_packages
from pipelines.local.home import cache_folder

HELD_OUT_EVERY = 4
VALIDATION_BACKGROUND_EVERY = 3
BACKGROUND_SHORT_SIDE = 480  # pixels; a crop of a third is still larger than the picture needs


@dataclass(frozen=True, kw_only=True)
class _BackgroundEntry:
    """One background of `stamps.json`. `shows_classes`: it shows things that are classes (trees in a forest). Such a
    picture has no true mask, so it is never used where masks are compared.
    """

    package: str
    path: str
    phrase: str
    nouns: tuple[str, ...]
    shows_classes: bool = False


@cache
def _listing() -> dict:
    return json.loads(Path(__file__).with_name("stamps.json").read_text(encoding="utf-8"))


def load_stamps(cache: Path | None = None) -> Material:
    """Downloads missing packages, decodes and shrinks all (about 5 s, 120 MB). PackagesUnavailable without apt."""
    listing = _listing()
    entries = [_BackgroundEntry(**entry) for entry in listing["backgrounds"]]
    packages = sorted({listing["stamps_package"], *(entry.package for entry in entries)})
    folders = unpack_packages(packages, cache or cache_folder())
    stamps = folders[listing["stamps_package"]] / listing["stamps_root"]

    seen: dict[str, list[Cutout]] = {}
    unseen: dict[str, list[Cutout]] = {}
    for noun, paths in listing["classes"].items():
        for position, path in enumerate(paths):
            held_out = position % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
            (unseen if held_out else seen).setdefault(noun, []).append(_read_cutout(noun, stamps / path))
    distractors = {
        noun: [_read_cutout(noun, stamps / path) for path in paths] for noun, paths in listing["distractors"].items()
    }

    clean = [entry for entry in entries if not entry.shows_classes]
    validation = clean[VALIDATION_BACKGROUND_EVERY - 1 :: VALIDATION_BACKGROUND_EVERY]
    calibration = [entry for entry in clean if entry not in validation]
    training = [entry for entry in entries if entry not in validation]
    loaded = {entry.path: _read_background(entry, folders[entry.package]) for entry in entries}
    return Material(
        name="stamps",
        classes=tuple(listing["classes"]),
        seen=seen,
        unseen=unseen,
        distractors=distractors,
        training_backgrounds=[loaded[entry.path] for entry in training],
        calibration_backgrounds=[loaded[entry.path] for entry in calibration],
        validation_backgrounds=[loaded[entry.path] for entry in validation],
    )


def _read_cutout(noun: str, path: Path) -> Cutout:
    with Image.open(path) as image:
        return make_cutout(noun, np.asarray(image.convert("RGBA")))


def _read_background(entry: _BackgroundEntry, folder: Path) -> Background:
    with Image.open(folder / entry.path) as image:
        # A JPEG decoder can decode at 1/2, 1/4 or 1/8, which is much faster, and sufficient for a crop of this size.
        image.draft("RGB", (BACKGROUND_SHORT_SIDE, BACKGROUND_SHORT_SIDE))
        pixels = np.asarray(image.convert("RGB"))
    scale = BACKGROUND_SHORT_SIDE / min(pixels.shape[:2])
    size = (round(pixels.shape[1] * scale), round(pixels.shape[0] * scale))
    return Background(
        image=cv2.resize(pixels, size, interpolation=cv2.INTER_AREA),
        phrase=entry.phrase,
        nouns=tuple(entry.nouns),
    )
