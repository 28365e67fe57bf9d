"""Writes the demo data. Run: `groupvit demo-data stamps --out DIR` or `groupvit demo-data shapes --out DIR`.

    DIR/train        data set of image-text pairs (no masks), as read by `pretrain`
    DIR/calibration  scenes with masks: training cut-outs on training backgrounds, to choose thresholds
    DIR/validation   scenes with masks on backgrounds never seen in training; part "seen": training cut-outs in new
                     scenes, part "unseen": cut-outs never seen in training
    DIR/raw          with --raw, instead of train: raw shards, as read by `curate`

Scene i of a part depends only on the seed, the part and i, so the number of processes does not change the data.
"""

import json
import multiprocessing
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Literal, NotRequired

import cv2
import numpy as np
import simplejpeg
from pydantic import with_config
from typing_extensions import TypedDict  # pydantic asks for it before Python 3.12

from pipelines import documents, storage
from pipelines.console.progress import ProgressLine
from pipelines.dataset.format import sample_id, write_dataset
from pipelines.demo.compose import Background, Cutout, Scene, compose
from pipelines.demo.material import Material
from pipelines.demo.raw import downloaded, write_raw_shards
from pipelines.demo.scenes import write_scenes
from pipelines.local.writable import check_writable

SCENES_PER_TASK = 250
MAX_TASKS_UNDER_WAY = 16
TRAINING_JPEG_QUALITY, EVALUATION_JPEG_QUALITY = 90, 95
Part = Literal["training", "calibration", "seen", "unseen"]
PARTS: tuple[Part, ...] = ("training", "calibration", "seen", "unseen")


@with_config(documents.KEEP_OTHERS)
class _LastFile(TypedDict):
    """The file that is written last: dataset.json of the training scenes, or raw/demo_data.json."""

    demo_data: NotRequired[dict[str, Any]]
    summary: NotRequired[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class DemoDataConfig:
    """Configures how much demo data to write, and where."""

    out: str
    """Folder to write: a local path or s3:// URI. Finished data of the same configuration is kept."""
    raw: bool = False
    """Whether to write the training scenes as raw shards for `groupvit curate`, as if they had been downloaded."""
    num_training_scenes: int = 40_000
    num_calibration_scenes: int = 300
    num_validation_scenes: int = 400
    """Number of scenes of each part, seen and unseen."""
    training_side: int = 80
    """Side of training scenes in pixels. Training crops from these."""
    evaluation_side: int = 160
    """Side of calibration and validation scenes in pixels. Larger, for fine masks and pictures."""
    distractor_share: float = 0.0
    """Share of training scenes that may also contain objects of other nouns, which are not evaluated."""
    seed: int = 0
    num_processes: int | None = None
    """Number of processes. None: one per CPU."""

    def __post_init__(self) -> None:
        for name in ("num_training_scenes", "num_calibration_scenes", "num_validation_scenes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: at least 1 is needed")
        for name in ("training_side", "evaluation_side"):
            if not 32 <= getattr(self, name) <= 320:
                raise ValueError(f"{name}={getattr(self, name)}: give 32 to 320 pixels")
        if not 0 <= self.distractor_share <= 1:
            raise ValueError(f"distractor_share={self.distractor_share}: give a share from 0 to 1")
        if self.num_processes is not None and self.num_processes < 1:
            raise ValueError(f"num_processes={self.num_processes}: at least 1 is needed")


def demo_data(kind: str, config: DemoDataConfig) -> dict[str, Any]:
    """Writes the data of `kind`, "stamps" or "shapes", unless it exists. Returns its summary, JSON-safe.

    Raises ValueError if `config.out` contains other data, or if the stamps cannot be downloaded.
    """
    made_by = {"kind": kind} | {
        key: value for key, value in asdict(config).items() if key not in ("out", "num_processes")
    }
    try:
        uri = storage.join(config.out, _last_file(config))
        metadata = documents.read(uri, _LastFile, "remove its folder, or give another")
    except FileNotFoundError:
        check_writable(config.out, "out")
        return generate(_load(kind), config, made_by)
    if metadata.get("demo_data") != made_by:
        raise ValueError(f"out={config.out} holds other demo data; give another folder, or remove this one")
    print(f"{config.out} already holds these scenes: nothing to do", file=sys.stderr)
    return dict(metadata.get("summary", {}))


def _last_file(config: DemoDataConfig) -> str:
    """The file that is written last."""
    return "raw/demo_data.json" if config.raw else "train/dataset.json"


def _load(kind: str) -> Material:
    # Imported late, because each costs a second or more, and only one is used.
    if kind == "stamps":
        from pipelines.demo.stamps import load_stamps

        return load_stamps()
    if kind == "shapes":
        from pipelines.demo.shapes import load_shapes

        return load_shapes()
    raise ValueError(f"unknown demo data {kind!r}: give stamps or shapes")


def generate(material: Material, config: DemoDataConfig, made_by: dict[str, Any]) -> dict[str, Any]:
    """Writes DIR/calibration, DIR/validation and finally DIR/train. dataset.json holds `made_by` and the summary."""
    out = storage.absolute(config.out)
    started = time.perf_counter()
    classes = ("background", *material.classes)
    context = multiprocessing.get_context("spawn")  # a forked copy of a process with threads may hang
    num_processes = config.num_processes or os.cpu_count() or 1
    with ProcessPoolExecutor(num_processes, context, _start_process, (material, config)) as pool:
        calibration = write_scenes(
            storage.join(out, "calibration"),
            _rows(pool, "calibration", config.num_calibration_scenes),
            classes=classes,
            parts=("calibration",),
        )
        validation = write_scenes(
            storage.join(out, "validation"),
            (row for part in ("seen", "unseen") for row in _rows(pool, part, config.num_validation_scenes)),
            classes=classes,
            parts=("seen", "unseen"),
        )
        summary = {
            "kind": material.name,
            "raw" if config.raw else "train": storage.join(out, "raw" if config.raw else "train"),
            "calibration": storage.join(out, "calibration"),
            "validation": storage.join(out, "validation"),
            "num_scenes": {"train": config.num_training_scenes, **calibration["counts"], **validation["counts"]},
            "classes": list(classes),
            "background_nouns": sorted({noun for place in material.training_backgrounds for noun in place.nouns}),
        }
        metadata = {"demo_data": made_by, "summary": summary}
        rows = _counted(_rows(pool, "training", config.num_training_scenes), config.num_training_scenes, material.name)
        if config.raw:
            write_raw_shards(summary["raw"], downloaded(rows))
            storage.write_bytes(storage.join(out, _last_file(config)), json.dumps(metadata).encode())
        else:
            write_dataset(summary["train"], rows, metadata=metadata)
    print(f"wrote {out} in {time.perf_counter() - started:.0f} s", file=sys.stderr)
    return summary


@dataclass(frozen=True, kw_only=True)
class _Process:
    """What each generating process holds."""

    material: Material
    config: DemoDataConfig


_process: _Process  # set once in each process of the pool, by its initialiser


def _start_process(material: Material, config: DemoDataConfig) -> None:
    global _process
    cv2.setNumThreads(1)  # the pool already uses every core
    _process = _Process(material=material, config=config)


def _rows(pool: ProcessPoolExecutor, part: Part, num_scenes: int) -> Iterator[dict[str, Any]]:
    """Yields the rows of a part, in order. Runs only a few tasks at a time, to limit memory."""
    starts = range(0, num_scenes, SCENES_PER_TASK)
    under_way: deque[Future[list[dict[str, Any]]]] = deque()
    for start in starts:
        under_way.append(pool.submit(_encoded_scenes, part, start, min(start + SCENES_PER_TASK, num_scenes)))
        if len(under_way) > MAX_TASKS_UNDER_WAY:
            yield from under_way.popleft().result()
    while under_way:
        yield from under_way.popleft().result()


def _encoded_scenes(part: Part, start: int, stop: int) -> list[dict[str, Any]]:
    return [_encoded_scene(part, index) for index in range(start, stop)]


def _encoded_scene(part: Part, index: int) -> dict[str, Any]:
    """Makes one row of the training data set, or of a scenes folder."""
    material, config = _process.material, _process.config
    rng = np.random.default_rng([config.seed, PARTS.index(part), index])
    cutouts, backgrounds = _ingredients(material, part, rng.random() < config.distractor_share)
    training = part == "training"
    side = config.training_side if training else config.evaluation_side
    scene = compose(cutouts, backgrounds, material.class_index, side=side, rng=rng, vary_backgrounds=training)
    quality = TRAINING_JPEG_QUALITY if training else EVALUATION_JPEG_QUALITY
    image = simplejpeg.encode_jpeg(np.ascontiguousarray(scene.image), quality=quality)
    row = {
        "sample_id": sample_id(image, scene.caption),
        "image": image,
        "width": side,
        "height": side,
    }
    if training:
        return {**row, "captions": [scene.caption], "nouns": [list(scene.nouns)], "source": material.name}
    return {**row, "caption": scene.caption, "mask": _png(scene), "part": part}


def _ingredients(
    material: Material, part: Part, with_distractors: bool
) -> tuple[dict[str, list[Cutout]], list[Background]]:
    match part:
        case "training":
            return (
                material.seen | material.distractors if with_distractors else material.seen
            ), material.training_backgrounds
        case "calibration":
            return material.seen, material.calibration_backgrounds
        case "seen":
            return material.seen, material.validation_backgrounds
        case "unseen":
            return material.unseen, material.validation_backgrounds


def _png(scene: Scene) -> bytes:
    encoded, data = cv2.imencode(".png", scene.mask)
    assert encoded
    return data.tobytes()


def _counted(rows: Iterator[dict[str, Any]], total: int, name: str) -> Iterator[dict[str, Any]]:
    """Yields the rows unchanged, with a progress line."""
    line = ProgressLine(f"{name}: drawn", total, "scenes")
    for row in rows:
        yield row
        line.add(1)
