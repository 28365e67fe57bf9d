"""Segments photos by words with the graphs in this folder. Labels are those of `groupvit segment`, pixel by pixel.

    pip install numpy pillow onnxruntime tokenizers simplejpeg
    python segment_onnx.py photo.jpg dog grass --out mask.png

    from segment_onnx import OnnxSegmenter
    found = OnnxSegmenter(folder).segment(pixels, ["dog", "grass"])   # pixels: uint8 [H, W, 3]

Needs neither PyTorch nor the `groupvit` package. Words that are not plain ASCII need the package ftfy, too.

Shapes: C words, P background prompts, L = C layers of scores or C + 1 with the background, G groups, D channels of the
shared space, h x w pixels of a window, H x W pixels of the image.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image

from groupvit.config import SegmentationConfig, from_dict
from groupvit.decode import decode_upright
from groupvit.resizing import Box, resized_pixels, windows
from groupvit.segmentation_request import check_image, with_background
from groupvit.tokenizer import VOCABULARY_FILE, Tokenizer
from groupvit.words import BACKGROUND, check_lengths, check_words, parse_words

Floats = NDArray[np.floating]

NUMBERS_AT_ONCE = 2**24
"""Number of scores in memory at a time: 64 MB."""
WINDOWS_AT_ONCE = 8


@dataclass(frozen=True, kw_only=True)
class Segmented:
    """Result of the segmentation of one image."""

    labels: NDArray[np.uint8]
    """[H, W]: index into `names` for every pixel."""
    names: tuple[str, ...]
    """Name of each label: the words, preceded by "background" if there is a background."""

    @property
    def shares(self) -> dict[str, float]:
        """Fraction of the pixels with each name."""
        counts = np.bincount(self.labels.ravel(), minlength=len(self.names))
        return dict(zip(self.names, (counts / self.labels.size).tolist(), strict=True))


@dataclass(frozen=True, kw_only=True)
class _Window:
    """One window of an image, as the image graph sees it."""

    box: Box
    masks: Floats
    """[G, h, w]: share of each pixel in each group."""
    classes: Floats
    """[C, G]: score of each group for each word."""
    background: Floats | None
    """[P, G]: the same for background prompts."""


class OnnxSegmenter:
    """Segments images with the graphs of an exported folder."""

    def __init__(self, folder: str | Path, providers: Sequence[str] = ("CPUExecutionProvider",)) -> None:
        """`providers`: execution providers of ONNX Runtime, in order of preference."""
        folder = Path(folder)
        self._about: dict[str, Any] = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
        self._images = onnxruntime.InferenceSession(folder / "image_encoder.onnx", providers=list(providers))
        self._texts = onnxruntime.InferenceSession(folder / "text_encoder.onnx", providers=list(providers))
        self._tokenize = Tokenizer(folder / VOCABULARY_FILE.name)
        self.segmentation = from_dict(SegmentationConfig, self._about["segmentation"])

    def segment(
        self,
        image: NDArray[np.uint8],
        words: Sequence[str],
        *,
        background: bool = True,
        background_threshold: float | None = None,
    ) -> Segmented:
        """Label every pixel of an image with one of the words or as background.

        Args:
            image: RGB image uint8 [H, W, 3].
            words: Words to find.
            background: Whether pixels can be background. False: every pixel gets a word.
            background_threshold: Pixels whose best word has a lower score are background. None: the model's.

        Raises:
            ValueError: The words, the image or the threshold are invalid.
        """
        config = with_background(self.segmentation, background=background, background_threshold=background_threshold)
        has_background = config.background_threshold is not None
        check_words(words, background=has_background)
        check_lengths(words, config.templates, self._tokenize, self._about["context_length"])
        check_image(image)
        classes = self._embedded(words, config)
        prompts = self._embedded(config.background_prompts, config) if config.background_prompts else None
        views = [
            (size, mirrored, self._windows(pixels, classes, prompts, config))
            for scale in config.scales
            for size, mirrored, pixels in self._views(image, scale, config)
        ]
        labels = _labels(views, (image.shape[0], image.shape[1]), len(words), config)
        return Segmented(labels=labels, names=(BACKGROUND, *words) if has_background else tuple(words))

    def _embedded(self, words: Sequence[str], config: SegmentationConfig) -> Floats:
        """Embed words by the mean over the prompt templates: [C, D] of unit length."""
        texts = [template.format(word) for word in words for template in config.templates]
        token_ids = self._tokenize(texts, self._about["context_length"]).astype(np.int64)
        token_ids = token_ids[:, : int(token_ids.argmax(axis=1).max()) + 1]  # the end token has the largest id
        [embedded] = self._texts.run(["text_embedding"], {"token_ids": token_ids})
        return _unit(np.asarray(embedded).reshape(len(words), len(config.templates), -1).mean(axis=1))

    def _views(
        self, image: NDArray[np.uint8], scale: float, config: SegmentationConfig
    ) -> list[tuple[tuple[int, int], bool, Floats]]:
        """The image at one scale, normalised [3, H', W'], and mirrored, if the protocol says so."""
        resized = resized_pixels(image, config, self._about["patch_size"], scale).transpose(2, 0, 1)
        mean, std = (np.asarray(self._about[name], np.float32)[:, None, None] for name in ("image_mean", "image_std"))
        pixels = (resized.astype(np.float32) / np.float32(255) - mean) / std
        size = (pixels.shape[1], pixels.shape[2])
        return [(size, False, pixels), (size, True, pixels[..., ::-1])] if config.flip else [(size, False, pixels)]

    def _windows(
        self, pixels: Floats, classes: Floats, prompts: Floats | None, config: SegmentationConfig
    ) -> list[_Window]:
        """Encode the windows of a view, and score their groups."""
        boxes = list(windows(pixels.shape[1], pixels.shape[2], config.window, config.stride))
        texts = classes if prompts is None else np.concatenate([classes, prompts])
        scale = np.float32(
            self._about["logit_scale" if config.logit_scale == "image_text" else "multi_label_logit_scale"]
        )
        found = []
        for start in range(0, len(boxes), WINDOWS_AT_ONCE):
            some = boxes[start : start + WINDOWS_AT_ONCE]
            batch = np.stack([pixels[:, box[0] : box[1], box[2] : box[3]] for box in some])
            outputs = ["image_embedding", "segment_embeddings", "group_map"]
            embeddings, segments, maps = map(np.asarray, self._images.run(outputs, {"image": batch}))
            for number, box in enumerate(some):
                scores = _affinity(segments[number], embeddings[number], texts, scale, config.top_classes).T
                masks = _resized(maps[number], (box[1] - box[0], box[3] - box[2]))
                if config.masks == "hard":
                    masks = (masks.argmax(axis=0) == np.arange(len(masks))[:, None, None]).astype(np.float32)
                background = None if prompts is None else scores[len(classes) :]
                found.append(_Window(box=box, masks=masks, classes=scores[: len(classes)], background=background))
        return found


def _unit(vectors: Floats) -> Floats:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _softmax(logits: Floats) -> Floats:
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def _affinity(segments: Floats, image: Floats, texts: Floats, scale: np.float32, top_classes: int | None) -> Floats:
    """Score of each segment for each text: [G, D], [D], [C + P, D] → [G, C + P] in [0, 1]."""
    logits = scale * _unit(segments) @ texts.T
    scores = _softmax(logits)
    if top_classes is None or top_classes >= len(texts):
        return scores if top_classes is None else scores * scores
    of_image = scale * _unit(image) @ texts.T
    others = np.argsort(-of_image, kind="stable")[top_classes:]
    logits = logits.copy()
    logits[:, others] = -np.inf
    return scores * _softmax(logits)


def _layers(window: _Window, rows: slice, config: SegmentationConfig) -> Floats:
    """Scores of the words, and of the background after them, in these rows of a window: [L, rows, w]."""
    masks = window.masks[:, rows]
    classes = _mixed(window.classes, masks)
    if config.background_threshold is None:
        return classes
    elsewhere = np.zeros_like(classes[0]) if window.background is None else _mixed(window.background, masks).max(axis=0)
    threshold = np.float32(config.background_threshold)
    if config.background_rule == "constant":
        return np.concatenate([classes, np.maximum(threshold, elsewhere)[None]])
    uncertain = classes.max(axis=0) < min(threshold, window.classes.max())
    return np.concatenate([classes, np.where(uncertain, np.float32(1), elsewhere)[None]])


def _mixed(scores: Floats, masks: Floats) -> Floats:
    """Scores of groups [C, G] → scores of pixels [C, h, w], by the groups' masks [G, h, w]."""
    return np.einsum("cg,ghw->chw", scores, masks)


def _labels(
    views: Sequence[tuple[tuple[int, int], bool, list[_Window]]],
    size: tuple[int, int],
    num_words: int,
    config: SegmentationConfig,
) -> NDArray[np.uint8]:
    """Average the scores of windows and views, resize them to the image, and let the best one win: [H, W]."""
    height, width = size
    num_layers = num_words + (config.background_threshold is not None)
    strip = max(NUMBERS_AT_ONCE // (num_layers * max(width, *(view[0][1] for view in views))), 1)
    labels = np.empty(size, np.uint8)
    for start in range(0, height, strip):
        total = np.zeros((num_layers, min(strip, height - start), width), np.float32)
        for (rows, columns), mirrored, found in views:
            taps = _Taps.of(rows, height).part(start, start + strip)
            first, last = int(taps.low[0]), int(taps.high[-1]) + 1
            average = _average(found, num_layers, columns, first, last, config)
            average = average[..., ::-1] if mirrored else average
            total += _Taps.of(columns, width).mix(taps.shifted(first).mix(average, 1), 2)
        best = total[:num_words].argmax(axis=0)
        if num_layers > num_words:
            best = np.where(total[num_words] >= total[:num_words].max(axis=0), 0, best + 1)
        labels[start : start + strip] = best
    return labels


def _average(
    found: Sequence[_Window], num_layers: int, width: int, first: int, last: int, config: SegmentationConfig
) -> Floats:
    """Mean of the windows' layers in rows `first` to `last` of the view: [L, last - first, width]."""
    total = np.zeros((num_layers, last - first, width), np.float32)
    times = np.zeros((last - first, width), np.float32)
    for window in found:
        top, bottom, left, right = window.box
        start, end = max(top, first), min(bottom, last)
        if start < end:
            layers = _layers(window, slice(start - top, end - top), config)
            total[:, start - first : end - first, left:right] += layers
            times[start - first : end - first, left:right] += 1
    return total / times


def _resized(maps: Floats, size: tuple[int, int]) -> Floats:
    """Resize maps [G, h, w] to `size` (bilinear)."""
    return _Taps.of(maps.shape[2], size[1]).mix(_Taps.of(maps.shape[1], size[0]).mix(maps, 1), 2)


@dataclass(frozen=True)
class _Taps:
    """Bilinear resizing along one axis: the two source positions on either side of each target position."""

    low: NDArray[np.int64]
    high: NDArray[np.int64]
    weight: Floats
    """Weight of `high`; that of `low` is the rest to 1."""

    @classmethod
    def of(cls, source: int, target: int) -> "_Taps":
        positions = (np.arange(target, dtype=np.float32) + np.float32(0.5)) * np.float32(source / target)
        positions = (positions - np.float32(0.5)).clip(min=0)
        low = positions.astype(np.int64).clip(max=source - 1)
        return cls(low, (low + 1).clip(max=source - 1), positions - low.astype(np.float32))

    def part(self, start: int, end: int) -> "_Taps":
        return _Taps(self.low[start:end], self.high[start:end], self.weight[start:end])

    def shifted(self, first: int) -> "_Taps":
        return _Taps(self.low - first, self.high - first, self.weight)

    def mix(self, values: Floats, axis: int) -> Floats:
        low, high = values.take(self.low, axis), values.take(self.high, axis)
        return low + self.weight.reshape(-1, *[1] * (values.ndim - 1 - axis)) * (high - low)


def main() -> None:
    """The command; see the module docstring."""
    parser = argparse.ArgumentParser(description="Segments a photo by words, with the graphs beside this file.")
    parser.add_argument("photo", help="a JPEG, PNG, WebP, GIF or BMP file; turned upright as its EXIF data says")
    parser.add_argument("words", nargs="+", help="what to look for, e.g. dog grass; also with commas between them")
    parser.add_argument("--out", default="mask.png", help="grey PNG to write: the index of a name for each pixel")
    parser.add_argument("--no-background", dest="background", action="store_false", help="every pixel gets a word")
    parser.add_argument("--background-threshold", type=float, metavar="SCORE", help="0 to 1; default: the model's")
    given = parser.parse_args()
    try:
        found = OnnxSegmenter(Path(__file__).parent).segment(
            decode_upright(Path(given.photo).read_bytes()),
            parse_words(",".join(given.words)),
            background=given.background,
            background_threshold=given.background_threshold,
        )
    except (OSError, ValueError) as error:
        parser.exit(2, f"segment_onnx.py: error: {error}\n")
    Image.fromarray(found.labels).save(given.out)
    for label, (name, share) in enumerate(found.shares.items()):
        print(f"{label:3} {100 * share:6.2f} %  {name}")


if __name__ == "__main__":
    main()
