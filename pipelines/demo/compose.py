"""Composes scenes: photo cut-outs on a photo, with the matching mask and caption.

This is data *generation*: each time a cut-out is placed, it is scaled, mirrored, rotated a little and mildly changed in
colour. A background is a random crop. The augmentation of finished pictures during training is separate.
"""

from dataclasses import dataclass

import cv2
import numpy as np

# Side of a placed object, sqrt(width x height), as a share of the picture's side, by the number of objects.
OBJECT_SIDE = {1: (0.42, 0.70), 2: (0.34, 0.52), 3: (0.28, 0.44)}
NUM_OBJECTS_PROBABILITIES = (0.4, 0.4, 0.2)
MAX_ROTATION_DEGREES = 15.0
MAX_OVERLAP = 0.1  # share of a new object that may hide earlier ones; above it, another place is tried
PLACEMENT_TRIES = 12

OPENINGS = (
    "a photo of {}",
    "{}",
    "a picture of {}",
    "an image of {}",
    "there is {}",
    "we see {}",
    "a nice shot of {}",
    "look at {}",
)


@dataclass(frozen=True, kw_only=True)
class Cutout:
    """One object without its surroundings. `levels`: float32 [h, w, 4] RGBA in 0 … 1 with colours premultiplied by
    alpha (so that edges blend without halos). Each level is half the size of the one before.
    """

    noun: str
    levels: tuple[np.ndarray, ...]


@dataclass(frozen=True, kw_only=True)
class Background:
    """A picture to put objects on. `image`: uint8 [h, w, 3] RGB; `phrase`: the place as named in a caption ("in the
    mountains"); `nouns`: the phrase's nouns.
    """

    image: np.ndarray
    phrase: str
    nouns: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """`image`: uint8 [side, side, 3] RGB; `mask`: uint8 [side, side], class index (0 = background)."""

    image: np.ndarray
    mask: np.ndarray
    caption: str
    nouns: tuple[str, ...]


def make_cutout(noun: str, rgba: np.ndarray, *, max_side: int = 256) -> Cutout:
    """`rgba`: uint8 [h, w, 4], not premultiplied. Crops it to the visible part and shrinks it to `max_side` pixels."""
    visible = rgba[..., 3] >= 128
    if not visible.any():
        raise ValueError(f"the cut-out for {noun!r} is fully transparent: give one with an alpha channel")
    rows, columns = np.flatnonzero(visible.any(1)), np.flatnonzero(visible.any(0))
    rgba = rgba[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32) / 255
    rgba[..., :3] *= rgba[..., 3:]
    longest = max(rgba.shape[:2])
    if longest > max_side:
        rgba = _shrink(rgba, max_side / longest)
    levels = [rgba]
    while min(levels[-1].shape[:2]) >= 16:
        levels.append(_shrink(levels[-1], 0.5))
    return Cutout(noun=noun, levels=tuple(levels))


def _shrink(image: np.ndarray, factor: float) -> np.ndarray:
    height, width = image.shape[:2]
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def compose(
    cutouts_by_noun: dict[str, list[Cutout]],
    backgrounds: list[Background],
    class_index: dict[str, int],
    *,
    side: int,
    rng: np.random.Generator,
    vary_backgrounds: bool = False,
) -> Scene:
    """Composes a scene of 1–3 objects with different nouns. Nouns missing in `class_index` are background (0) in the
    mask.

    `vary_backgrounds` changes the background's colours strongly, so that few photos represent more places.
    """
    background = backgrounds[rng.integers(len(backgrounds))]
    canvas = _background_crop(background.image, side, rng)
    if vary_backgrounds:
        canvas = _varied(canvas, rng)
    mask = np.zeros((side, side), np.uint8)
    num_objects = 1 + int(rng.choice(3, p=NUM_OBJECTS_PROBABILITIES))
    all_nouns = sorted(cutouts_by_noun)
    nouns = [all_nouns[i] for i in rng.permutation(len(all_nouns))[:num_objects]]
    occupied = np.zeros((side, side), bool)
    for noun in nouns:
        choices = cutouts_by_noun[noun]
        patch = _transformed(choices[rng.integers(len(choices))], num_objects, side, rng)
        top, left = _place(patch[..., 3] >= 0.5, occupied, rng)
        height, width = patch.shape[:2]
        window = np.s_[top : top + height, left : left + width]
        canvas[window] = canvas[window] * (1 - patch[..., 3:]) + patch[..., :3]
        solid = patch[..., 3] >= 0.5
        mask[window][solid] = class_index.get(noun, 0)
        occupied[window] |= solid
    image = np.clip(canvas * 255 + 0.5, 0, 255).astype(np.uint8)
    return Scene(
        image=image,
        mask=mask,
        caption=_caption(nouns, background.phrase, rng),
        nouns=(*nouns, *background.nouns),
    )


def _background_crop(image: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """Crops a random square of the background: float32 [side, side, 3] in 0 … 1."""
    height, width = image.shape[:2]
    crop = int(min(height, width) * rng.uniform(0.35, 1.0))
    top, left = rng.integers(height - crop + 1), rng.integers(width - crop + 1)
    square = image[top : top + crop, left : left + crop]
    shrinking = crop >= side
    square = cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR)
    if rng.random() < 0.5:
        square = square[:, ::-1]
    return np.clip(square.astype(np.float32) / 255 * rng.uniform(0.8, 1.15), 0, 1)


def _varied(canvas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Changes light and tint of half of the backgrounds: float32 [side, side, 3] in 0 … 1."""
    if rng.random() < 0.5:
        return canvas
    grey = canvas.mean(-1, keepdims=True)
    canvas = np.clip(grey + (canvas - grey) * rng.uniform(0.0, 1.3), 0, 1)
    canvas = canvas ** np.float32(rng.uniform(0.5, 1.8)) * rng.uniform(0.75, 1.25, 3).astype(np.float32)
    return np.clip(canvas, 0, 1)


def _transformed(cutout: Cutout, num_objects: int, side: int, rng: np.random.Generator) -> np.ndarray:
    """Transforms the cut-out for pasting: float32 [h, w, 4], premultiplied by alpha, h and w at most `side`."""
    height, width = cutout.levels[0].shape[:2]
    target = rng.uniform(*OBJECT_SIDE[num_objects]) * side
    scale = min(target / np.sqrt(height * width), 0.92 * side / max(height, width))
    angle = np.deg2rad(rng.uniform(-MAX_ROTATION_DEGREES, MAX_ROTATION_DEGREES))
    cosine, sine = np.cos(angle), np.sin(angle)
    out_width = min(side, int(np.ceil(scale * (width * abs(cosine) + height * abs(sine)))) + 2)
    out_height = min(side, int(np.ceil(scale * (width * abs(sine) + height * abs(cosine)))) + 2)
    # The smallest level that has to be shrunk by less than 2x, where bilinear sampling does not alias.
    level = min(max(0, int(np.floor(-np.log2(scale)))), len(cutout.levels) - 1)
    source = cutout.levels[level]
    factor = scale * width / source.shape[1]
    mirror = -1.0 if rng.random() < 0.5 else 1.0
    matrix = factor * np.array([[cosine * mirror, -sine], [sine * mirror, cosine]])
    centre = np.array([(source.shape[1] - 1) / 2, (source.shape[0] - 1) / 2])
    shift = np.array([(out_width - 1) / 2, (out_height - 1) / 2]) - matrix @ centre
    patch = cv2.warpAffine(
        source, np.column_stack([matrix, shift]), (out_width, out_height), flags=cv2.INTER_LINEAR, borderValue=0
    )
    return _recoloured(patch, rng)


def _recoloured(patch: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mildly changes brightness, contrast, saturation and tint. Keeps alpha."""
    alpha = patch[..., 3:]
    colour = patch[..., :3]
    grey = colour.mean(-1, keepdims=True)
    colour = grey + (colour - grey) * rng.uniform(0.75, 1.25)
    colour = colour * rng.uniform(0.8, 1.2) * rng.uniform(0.94, 1.06, 3).astype(np.float32)
    contrast = rng.uniform(0.85, 1.15)
    middle = colour.sum((0, 1)) / max(float(alpha.sum()), 1e-3)
    colour = middle * alpha + (colour - middle * alpha) * contrast
    return np.concatenate([np.clip(colour, 0, alpha), alpha], axis=-1).astype(np.float32)


def _place(solid: np.ndarray, occupied: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
    """Finds a place where the object hides little of the others: the first under MAX_OVERLAP, else the best tried."""
    height, width = solid.shape
    side = occupied.shape[0]
    area = max(int(solid.sum()), 1)
    best, best_overlap = (0, 0), np.inf
    for _ in range(PLACEMENT_TRIES):
        top, left = int(rng.integers(side - height + 1)), int(rng.integers(side - width + 1))
        overlap = np.count_nonzero(occupied[top : top + height, left : left + width] & solid) / area
        if overlap < best_overlap:
            best, best_overlap = (top, left), overlap
        if overlap <= MAX_OVERLAP:
            break
    return best


def _caption(nouns: list[str], phrase: str, rng: np.random.Generator) -> str:
    things = [f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}" for noun in nouns]
    listed = things[0] if len(things) == 1 else ", ".join(things[:-1]) + " and " + things[-1]
    return f"{OPENINGS[rng.integers(len(OPENINGS))].format(listed)} {phrase}"
