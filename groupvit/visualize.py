"""Draws pictures of segmentations: image, truth, prediction and the groups of each stage side by side, with a legend.

Functions return a PIL image or the bytes of a file, and write no files. Label maps are uint8 [H, W], images uint8
[H, W, 3].
"""

import colorsys
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from groupvit.metrics import IGNORE_INDEX

RGB = tuple[int, int, int]

PAPER: RGB = (255, 255, 255)
INK: RGB = (32, 36, 44)
FAINT_INK: RGB = (118, 124, 134)
BACKGROUND: RGB = (58, 62, 72)
IGNORED: RGB = (214, 216, 220)
# Twenty colours that most people can distinguish: Sasha Trubetskoy's list, without near-black and near-white.
DISTINCT: tuple[RGB, ...] = (
    (230, 55, 70), (60, 170, 75), (255, 210, 40), (60, 105, 215), (245, 130, 49), (150, 50, 180), (70, 225, 235),
    (240, 60, 225), (190, 235, 70), (250, 180, 200), (0, 135, 135), (205, 175, 250), (155, 95, 40), (130, 10, 35),
    (150, 240, 180), (125, 125, 10), (255, 190, 130), (35, 50, 130), (95, 200, 160), (175, 120, 120),
)  # fmt: skip

CELL = 240
GAP = 12
HEADER = 30


@dataclass(frozen=True, kw_only=True)
class Example:
    """One image and the label maps to draw beside it."""

    title: str
    image: NDArray[np.uint8]
    prediction: NDArray[np.uint8]
    truth: NDArray[np.uint8] | None = None
    group_maps: Sequence[NDArray[np.floating]] = ()
    """[G, h, w] per grouping stage, on the token grid."""


def palette(num_colours: int) -> NDArray[np.uint8]:
    """Colours that are easy to distinguish: uint8 [num_colours, 3]. After twenty, hues at golden-ratio steps."""
    colours = list(DISTINCT[:num_colours])
    for index in range(len(colours), num_colours):
        red, green, blue = colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.5 + 0.2 * (index % 3), 0.95 - 0.15 * (index % 4))
        colours.append((round(red * 255), round(green * 255), round(blue * 255)))
    return np.array(colours, dtype=np.uint8).reshape(num_colours, 3)


def label_palette(num_labels: int, has_background: bool, colours: Sequence[RGB] | None = None) -> NDArray[np.uint8]:
    """Colours of all 256 label values: `colours`, one per label, or the default ones; light grey for ignored pixels.

    In the default colours, label 0 is dark grey if it is the background.
    """
    table = np.full((256, 3), IGNORED, dtype=np.uint8)
    if colours is not None:
        table[:num_labels] = colours
    else:
        table[int(has_background) : num_labels] = palette(num_labels - int(has_background))
        if has_background:
            table[0] = BACKGROUND
    table[IGNORE_INDEX] = IGNORED
    return table


def encode_labels(labels: NDArray[np.uint8], colours: NDArray[np.uint8]) -> bytes:
    """Encode a label map [H, W] as a PNG with a palette [256, 3]: labels can be read back, and viewers show colours."""
    picture, file = Image.fromarray(labels).convert("P"), io.BytesIO()
    picture.putpalette(colours.tobytes())
    picture.save(file, format="PNG")
    return file.getvalue()


def overlay(
    image: NDArray[np.uint8], labels: NDArray[np.uint8], colours: NDArray[np.uint8], has_background: bool
) -> Image.Image:
    """Tint the image by its labels, with white lines between them. The background is dimmed, not tinted."""
    grey = image.mean(axis=-1, keepdims=True)
    tinted = 0.32 * image + 0.68 * colours[labels]
    if has_background:
        tinted = np.where((labels == 0)[..., None], 0.35 * grey + 0.15 * image + 8, tinted)
    tinted = np.where((labels == IGNORE_INDEX)[..., None], 0.3 * grey + 0.7 * np.array(IGNORED), tinted)
    edge = _edges(labels)[..., None]
    return Image.fromarray(np.where(edge, 0.25 * tinted + 190, tinted).clip(0, 255).astype(np.uint8))


def pixel_groups(group_map: NDArray[np.floating], height: int, width: int) -> NDArray[np.uint8]:
    """Group of each pixel: the arg max of the maps [G, h, w], resized (bilinear) → uint8 [height, width]."""
    groups = np.zeros((height, width), dtype=np.uint8)
    highest = np.full((height, width), -np.inf, dtype=np.float32)
    for index, group in enumerate(group_map):  # one at a time: all of them at this size may not fit into memory
        picture = Image.fromarray(group.astype(np.float32))
        enlarged = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))
        groups[enlarged > highest] = index
        np.maximum(highest, enlarged, out=highest)
    return groups


def ranks_by_size(groups: NDArray[np.uint8], num_groups: int) -> NDArray[np.uint8]:
    """Rank groups by their number of pixels, 0 for the largest: [num_groups]. Colours are assigned by rank, so that
    large groups get the clearest ones."""
    sizes = np.bincount(groups.ravel(), minlength=num_groups)
    return np.argsort(np.argsort(-sizes, kind="stable")).astype(np.uint8)


def group_picture(image: NDArray[np.uint8], group_map: NDArray[np.floating]) -> Image.Image:
    """Tint the image by the group of each pixel."""
    groups = pixel_groups(group_map, *image.shape[:2])
    ranks = ranks_by_size(groups, len(group_map))
    return overlay(image, ranks[groups], label_palette(len(group_map), False), False)


def with_legend(
    picture: Image.Image, class_names: Sequence[str], colours: NDArray[np.uint8], labels: NDArray[np.uint8]
) -> Image.Image:
    """Add a legend of the labels below the picture of a label map, in a size that suits the picture."""
    scale = max(min(picture.width, picture.height) / 480, 1.0)
    width = max(picture.width, 240)
    legend = _legend(class_names, colours, [int(label) for label in np.unique(labels)], round(width / scale), scale)
    canvas = Image.new("RGB", (max(width, legend.width), picture.height + legend.height), PAPER)
    canvas.paste(picture, (0, 0))
    canvas.paste(legend, (0, picture.height))
    return canvas


def page(
    examples: Sequence[Example],
    class_names: Sequence[str],
    *,
    has_background: bool,
    heading: str = "",
    cell: int = CELL,
) -> Image.Image:
    """Draw a page with one row per example, and a legend of the classes that occur.

    class_names: one name per label, including the background. ValueError without examples.
    """
    if not examples:
        raise ValueError("there is nothing to draw: give one or more examples")
    colours = label_palette(len(class_names), has_background)
    with_truth = any(example.truth is not None for example in examples)
    num_stages = max(len(example.group_maps) for example in examples)
    titles = ["image", *(["truth"] if with_truth else []), "prediction"]
    titles += [f"groups, stage {stage + 1}" if num_stages > 1 else "groups" for stage in range(num_stages)]
    rows = [_row(example, colours, has_background, with_truth, num_stages, cell) for example in examples]
    width = GAP + len(titles) * (cell + GAP)
    legend = _legend(class_names, colours, _labels_shown(examples), width)
    top = 2 * GAP + 26 if heading else GAP
    total = top + HEADER + sum(row.height + GAP for row in rows) + legend.height
    canvas = Image.new("RGB", (width, total), PAPER)
    draw = ImageDraw.Draw(canvas)
    if heading:
        draw.text((GAP, GAP), heading, fill=INK, font=_font(20))
    for index, title in enumerate(titles):
        draw.text((GAP + index * (cell + GAP) + cell // 2, top + HEADER // 2), title, INK, _font(16), anchor="mm")
    y = top + HEADER
    for row in rows:
        canvas.paste(row, (0, y))
        y += row.height + GAP
    canvas.paste(legend, (0, y))
    return canvas


def confusion_picture(matrix: NDArray[np.int64], class_names: Sequence[str]) -> Image.Image:
    """Draw a heat map of a confusion matrix, in percent of each row (true class)."""
    num_classes = len(class_names)
    cell, numbered = (44, True) if num_classes <= 24 else (16, False)
    font = _font(15 if numbered else 11)
    margin = round(max(font.getlength(name) for name in class_names)) + 2 * GAP
    size = margin + num_classes * cell + GAP
    canvas = Image.new("RGB", (size, size + HEADER), PAPER)
    draw = ImageDraw.Draw(canvas)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    low, high = np.array((243, 246, 250)), np.array((20, 66, 133))
    for row, name in enumerate(class_names):
        y = margin + row * cell
        draw.text((margin - 8, y + cell // 2), name, INK, font, anchor="rm")
        for column in range(num_classes):
            share, x = float(shares[row, column]), margin + column * cell
            colour = tuple(int(value) for value in low + (high - low) * share**0.6)
            draw.rectangle((x, y, x + cell - 2, y + cell - 2), fill=colour)
            if numbered and round(100 * share):
                ink = PAPER if share > 0.35 else INK
                draw.text((x + cell // 2 - 1, y + cell // 2 - 1), f"{100 * share:.0f}", ink, font, anchor="mm")
        _vertical_text(canvas, name, (margin + row * cell + cell // 2, margin - 8), font)
    caption = "rows: truth, columns: prediction, percent of the true class's pixels"
    draw.text((GAP, size + HEADER // 2), caption, FAINT_INK, _font(13), anchor="lm")
    return canvas


def _row(
    example: Example, colours: NDArray[np.uint8], has_background: bool, with_truth: bool, num_stages: int, cell: int
) -> Image.Image:
    height, width = example.image.shape[:2]
    scale = cell / max(height, width)
    shape = (max(round(width * scale), 1), max(round(height * scale), 1))
    # Resized before drawing, so that lines between labels have the same width on small and large images.
    image = np.asarray(Image.fromarray(example.image).resize(shape, Image.Resampling.LANCZOS))

    def tinted(labels: NDArray[np.uint8] | None) -> Image.Image | None:
        if labels is None:
            return None
        enlarged = np.asarray(Image.fromarray(labels).resize(shape, Image.Resampling.NEAREST))
        return overlay(image, enlarged, colours, has_background)

    pictures = [Image.fromarray(image), *([tinted(example.truth)] if with_truth else []), tinted(example.prediction)]
    pictures += [group_picture(image, group_map) for group_map in example.group_maps]
    canvas = Image.new("RGB", (GAP + (2 + with_truth + num_stages) * (cell + GAP), shape[1] + 24), PAPER)
    for index, picture in enumerate(pictures):
        if picture is not None:
            canvas.paste(picture, (GAP + index * (cell + GAP) + (cell - shape[0]) // 2, 0))
    font = _font(13)
    title = _shortened(example.title, font, canvas.width - 2 * GAP)
    ImageDraw.Draw(canvas).text((GAP, shape[1] + 12), title, FAINT_INK, font, anchor="lm")
    return canvas


def _labels_shown(examples: Sequence[Example]) -> list[int]:
    maps = [labels for example in examples for labels in (example.prediction, example.truth) if labels is not None]
    return sorted({int(label) for labels in maps for label in np.unique(labels)})


def _legend(
    class_names: Sequence[str], colours: NDArray[np.uint8], labels: Sequence[int], width: int, scale: float = 1.0
) -> Image.Image:
    """Draw a legend: laid out for `width` pixels, then enlarged by `scale`."""
    font, line = _font(15), 28
    chips: list[tuple[int, int, int, str]] = []
    x, y = GAP, 4
    for label in labels:
        name = _shortened("ignored" if label == IGNORE_INDEX else class_names[label], font, width - 2 * GAP - 26)
        needed = 26 + round(font.getlength(name)) + 18
        if x > GAP and x + needed > width - GAP:
            x, y = GAP, y + line
        chips.append((x, y, label, name))
        x += needed
    canvas = Image.new("RGB", (round(width * scale), round((y + line + GAP) * scale)), PAPER)
    draw, font = ImageDraw.Draw(canvas), _font(15 * scale)
    for x, y, label, name in chips:
        box = (x * scale, (y + 4) * scale, (x + 18) * scale, (y + 22) * scale)
        draw.rounded_rectangle(box, radius=5 * scale, fill=tuple(int(value) for value in colours[label]))
        draw.text(((x + 26) * scale, (y + 13) * scale), name, INK, font, anchor="lm")
    return canvas


def _edges(labels: NDArray[np.integer]) -> NDArray[np.bool_]:
    edge = np.zeros(labels.shape, dtype=bool)
    edge[1:] |= labels[1:] != labels[:-1]
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    return edge


def _vertical_text(
    canvas: Image.Image, text: str, bottom_centre: tuple[int, int], font: ImageFont.FreeTypeFont
) -> None:
    strip = Image.new("RGB", (round(font.getlength(text)) + 4, 22), PAPER)
    ImageDraw.Draw(strip).text((2, 11), text, INK, font, anchor="lm")
    turned = strip.rotate(90, expand=True)
    canvas.paste(turned, (bottom_centre[0] - turned.width // 2, bottom_centre[1] - turned.height))


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _font(size: float) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font
