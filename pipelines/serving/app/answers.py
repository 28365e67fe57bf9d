"""Answers of the server to the page: a `Segmented` as JSON, with its maps as PNGs that a canvas can read.

An answer is an HTTP status and a body. The body for an invalid request is JSON, `{"error": one line}`.
"""

import base64
import dataclasses
import io
import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from groupvit.decode import MAX_PIXELS, decode_upright
from groupvit.segmentation_request import check_image
from groupvit.segmenter import Segmented, Segmenter
from groupvit.visualize import encode_labels, label_palette, pixel_groups, ranks_by_size

LONGEST_SIDE = 1024
"""Longer side of an answer's maps in pixels, also for smaller images, so that edges are as fine as the page shows."""
MAX_SCORES = 2**26
"""Largest number of words times pixels in an answer (a quarter of a GB). With many words, the maps are smaller."""
MAX_LABELLED_PIXELS = 2**24
"""Largest number of pixels of an image whose labels are asked for in its own size, 16.8 megapixels."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """A visitor's request."""

    image: bytes
    """Bytes of an image file."""
    words: tuple[str, ...]
    background: bool = True
    background_threshold: float | None = None
    labels_only: bool = False
    """Whether the answer is a PNG of the labels in the image's own size. Else it is what the page shows."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer to a question: an HTTP status and a body."""

    status: int
    body: bytes
    media_type: str = "application/json"
    headers: dict[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, content: Any) -> "Answer":
        return cls(status=200, body=json.dumps(content).encode())

    @classmethod
    def error(cls, status: int, message: str) -> "Answer":
        return cls(status=status, body=json.dumps({"error": " ".join(message.split())}).encode())


def answer(segmenter: Segmenter, question: Question) -> Answer:
    """Segments the image of a question. The status is 400 if the question is invalid."""
    started = time.perf_counter()
    try:
        config = segmenter.protocol(background=question.background, background_threshold=question.background_threshold)
        segmenter.check(question.words, background=config.background_threshold is not None)  # before decoding
        limit = MAX_LABELLED_PIXELS if question.labels_only else MAX_PIXELS
        image = decode_upright(question.image, max_pixels=limit)
        check_image(image)
        found = segmenter.segment(
            image if question.labels_only else _of_page_size(image, len(question.words)),
            question.words,
            background=question.background,
            background_threshold=question.background_threshold,
        )
    except ValueError as error:
        return Answer.error(400, str(error))
    if question.labels_only:
        png = encode_labels(found.labels, label_palette(len(found.names), found.has_background))
        names = {"groupvit-names": json.dumps(found.names)}
        return Answer(status=200, body=png, media_type="image/png", headers=names)
    return Answer.of({**describe(found), "seconds": round(time.perf_counter() - started, 2)})


def describe(found: Segmented) -> dict[str, Any]:
    """Returns the JSON of `POST /api/segment`."""
    height, width = found.labels.shape
    colours = label_palette(len(found.names), found.has_background)
    groups, affinities, shares = [], found.affinities, np.zeros(0)
    for group_map in found.group_maps:
        owners = pixel_groups(group_map, height, width)
        ranks = ranks_by_size(owners, len(group_map))
        palette = label_palette(len(group_map), False)[: len(group_map)]
        groups.append({"map": _data_url(_png(ranks[owners])), "colours": palette.tolist()})
        order = np.argsort(ranks)
        shares = np.bincount(owners.ravel(), minlength=len(group_map))[order] / owners.size
        affinities = found.affinities[order] if group_map is found.group_maps[-1] else affinities
    return {
        "width": width,
        "height": height,
        "names": list(found.names),
        "has_background": found.has_background,
        "colours": colours[: len(found.names)].tolist(),
        "shares": _rounded(found.shares),
        "labels": _data_url(encode_labels(found.labels, colours)),
        "groups": groups,
        "affinities": [_rounded(row) for row in affinities],
        "group_shares": _rounded(shares),
    }


def _of_page_size(image: NDArray[np.uint8], num_words: int) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    scale = min(LONGEST_SIDE / max(height, width), (MAX_SCORES / ((num_words + 1) * height * width)) ** 0.5)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0))


def _png(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def _data_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _rounded(values: Sequence[float] | NDArray[np.floating]) -> list[float]:
    return [round(float(value), 4) for value in values]
