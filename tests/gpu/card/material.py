"""Data of the checks: slices with texts of many lengths, and data sets of drawn pictures. Needs no spaCy."""

import functools
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from groupvit.captions import draw_prompts
from groupvit.config import ModelConfig
from groupvit.tokenizer import Tokenizer
from pipelines.dataset.format import sample_id, write_dataset
from pipelines.demo.compose import compose
from pipelines.demo.shapes import load_shapes
from pipelines.ingest.plan import Slice

CAPTIONS: list[dict[str, Any]] = json.loads(Path(__file__).with_name("captions.json").read_text())
"""Captions, each with the nouns that `groupvit.captions.mine_nouns` finds in it."""
ERASED_SHARE = 0.25  # of images, by the paper's augmentation


def make_slice(size: int, num_prompts: int, model: ModelConfig, *, seed: int) -> Slice:
    """A slice as training gets it: random pixels, captions of 5 to 30 tokens, prompts of their nouns."""
    rng = np.random.default_rng([seed, size])
    texts: list[str] = []
    keys: list[int] = []
    for caption, nouns in _captions(size, rng):
        prompts, nouns_used = draw_prompts(nouns, caption, num_prompts, rng)
        texts += [caption, *prompts]
        keys += [zlib.crc32(noun.encode()) for noun in nouns_used]
    side = model.image.image_size
    boxes = np.zeros((size, 4), np.int16)
    erased = rng.random(size) < ERASED_SHARE
    boxes[erased] = (side // 8, side // 4, side // 3, side // 2)
    token_ids = Tokenizer()(texts, model.text.context_length)
    return {
        "image": _pixels(size, side),
        "token_ids": token_ids.reshape(size, 1 + num_prompts, -1),
        "prompt_keys": np.array(keys, dtype=np.int64).reshape(size, num_prompts),
        "erase_box": boxes,
        "noise_seed": rng.integers(0, 2**62, size),
    }


@functools.lru_cache(maxsize=2)
def _pixels(size: int, side: int) -> np.ndarray:
    """The same for all slices of a size: making them takes longer than steps."""
    pixels = np.random.default_rng(size).integers(0, 256, (size, 3, side, side), dtype=np.uint8)
    pixels.flags.writeable = False  # as those that Ray hands over
    return pixels


def _captions(number: int, rng: np.random.Generator) -> Iterator[tuple[str, list[str]]]:
    """The beginning of one caption and the end of another, each pair once in `len(CAPTIONS)` squared."""
    count = len(CAPTIONS)
    pairs = np.concatenate([rng.permutation(count * count) for _ in range(-(-number // (count * count)))])
    for pair in pairs[:number].tolist():
        first, second = CAPTIONS[pair // count], CAPTIONS[pair % count]
        begin, end = first["caption"].split(), second["caption"].split()
        begin, end = begin[: len(begin) // 2], end[len(end) // 2 :]
        caption = " ".join([*begin, *end])
        told = caption.lower()
        yield caption, [noun for noun in (*first["nouns"], *second["nouns"]) if noun in told]


def noisy_images(number: int, size: tuple[int, int]) -> list[np.ndarray]:
    """Images uint8 [H, W, 3] of 6 rows of blocks."""
    side = -(-size[0] // 6)
    blocks = np.random.default_rng(0).integers(0, 255, (number, 6, -(-size[1] // side), 3), dtype=np.uint8)
    whole = blocks.repeat(side, axis=1).repeat(side, axis=2)[:, : size[0], : size[1]]
    return list(np.ascontiguousarray(whole))


def write_shapes(uri: str, number: int, *, side: int = 80, image_format: str = "WEBP") -> str:
    """Writes a data set of drawn shapes. WebP is read without simplejpeg."""
    material = load_shapes()

    def rows() -> Iterator[dict[str, Any]]:
        for index in range(number):
            rng = np.random.default_rng(index)
            scene = compose(
                material.seen,
                material.training_backgrounds,
                material.class_index,
                side=side,
                rng=rng,
                vary_backgrounds=True,
            )
            image = _encoded(scene.image, image_format)
            yield _row(image, scene.caption, list(scene.nouns), side, side)

    write_dataset(uri, rows())
    return uri


def write_photos(uri: str, number: int, *, different: int = 256) -> str:
    """Writes a data set of JPEG files with about the detail of photos: noise at all scales, of 30 to 40 kB."""
    rng = np.random.default_rng(0)
    images = []
    for _ in range(different):
        pixels = np.zeros((256, 341, 3))
        for side in (4, 8, 16, 32, 64, 128):
            noise = Image.fromarray(rng.integers(256, size=(side, side, 3), dtype=np.uint8))
            pixels += np.asarray(noise.resize((341, 256), Image.Resampling.BICUBIC), dtype=np.float64) / 6
        images.append(_encoded(pixels.astype(np.uint8), "JPEG"))
    captions = _captions(number, rng)
    rows = (
        _row(images[index % different], f"{caption} {index}", nouns, 256, 341)
        for index, (caption, nouns) in enumerate(captions)
    )
    write_dataset(uri, rows)
    return uri


def _row(image: bytes, caption: str, nouns: list[str], height: int, width: int) -> dict[str, Any]:
    return {
        "sample_id": sample_id(image, caption),
        "image": image,
        "captions": [caption],
        "nouns": [nouns],
        "width": width,
        "height": height,
        "source": "check",
    }


def _encoded(pixels: np.ndarray, image_format: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, image_format, quality=90)
    return file.getvalue()
