"""RandAugment (arXiv 1909.13719) and colour jitter: random draws, and the operations on one image with Pillow.

Drawing is apart from applying, so that a sample has the same draws whether they are applied here or on the
training device (`groupvit.device_augment`).
"""

import random
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance

FILL: tuple[int, int, int] = (124, 116, 104)
"""What is outside an image that was turned, sheared or moved: ImageNet's mean colour."""

# The operations of RandAugment with increasing strengths: level 0 … 1 → argument of timm's operation of that name.
# Operations with two directions get a level with a random sign.
_SIGNED_ARGUMENTS: dict[str, Callable[[float], float]] = {
    "Rotate": lambda level: level * 30,
    "ShearX": lambda level: level * 0.3,
    "ShearY": lambda level: level * 0.3,
    "TranslateXRel": lambda level: level * 0.45,
    "TranslateYRel": lambda level: level * 0.45,
    "ColorIncreasing": lambda level: max(0.1, 1 + level * 0.9),
    "ContrastIncreasing": lambda level: max(0.1, 1 + level * 0.9),
    "BrightnessIncreasing": lambda level: max(0.1, 1 + level * 0.9),
    "SharpnessIncreasing": lambda level: max(0.1, 1 + level * 0.9),
}
_UNSIGNED_ARGUMENTS: dict[str, Callable[[float], int]] = {
    "PosterizeIncreasing": lambda level: 4 - int(level * 4),
    "SolarizeIncreasing": lambda level: 256 - int(level * 256),
    "SolarizeAdd": lambda level: int(level * 110),
}
_ENHANCERS = {
    "BrightnessIncreasing": ImageEnhance.Brightness,
    "ContrastIncreasing": ImageEnhance.Contrast,
    "ColorIncreasing": ImageEnhance.Color,
}

OPERATIONS: tuple[str, ...] = ("AutoContrast", "Equalize", "Invert", *_SIGNED_ARGUMENTS, *_UNSIGNED_ARGUMENTS)
"""Names of the operations, as in timm."""


class Operation(NamedTuple):
    """One drawn operation."""

    name: str
    """One of `OPERATIONS`."""
    argument: float | None
    """Argument of timm's operation of that name. None: it takes none."""


def draw_rand_augment(rng: random.Random) -> tuple[Operation | None, ...]:
    """Draw two of 15 operations, each with probability 0.5 (else None), at a level of 0.9 ± 0.05."""
    return tuple(_draw_argument(name, rng) for name in rng.choices(OPERATIONS, k=2))


def draw_color_jitter(largest: float, rng: random.Random) -> tuple[Operation | None, ...]:
    """Draw factors of brightness, contrast and saturation in 1 ± `largest`."""
    return tuple(Operation(name, 1 + largest * (2 * rng.random() - 1)) for name in _ENHANCERS)


def apply_with_pillow(image: Image.Image, operations: Iterable[Operation | None]) -> Image.Image:
    """Apply operations to an RGB image, one after the other."""
    for operation in operations:
        if operation is not None:
            image = _apply(image, operation)
    return image


def operation_columns(
    drawn: Sequence[Sequence[Operation | None]],
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Return the operations of n images in R rounds as arrays: indices in `OPERATIONS` [n,R], -1 for none, and
    arguments [n,R], 0 for none."""
    rounds = len(drawn[0]) if drawn else 0
    indices = np.full((len(drawn), rounds), -1, dtype=np.int8)
    arguments = np.zeros((len(drawn), rounds), dtype=np.float32)
    for image, operations in enumerate(drawn):
        for place, operation in enumerate(operations):
            if operation is not None:
                indices[image, place] = OPERATIONS.index(operation.name)
                arguments[image, place] = operation.argument or 0
    return indices, arguments


def _draw_argument(name: str, rng: random.Random) -> Operation | None:
    if rng.random() > 0.5:
        return None
    level = max(0.0, min(rng.gauss(9, 0.5), 10.0)) / 10
    if name in _SIGNED_ARGUMENTS:
        return Operation(name, _SIGNED_ARGUMENTS[name](-level if rng.random() > 0.5 else level))
    if name in _UNSIGNED_ARGUMENTS:
        return Operation(name, _UNSIGNED_ARGUMENTS[name](level))
    return Operation(name, None)


def _apply(image: Image.Image, operation: Operation) -> Image.Image:
    name, argument = operation
    if name in _ENHANCERS and argument is not None:
        return _ENHANCERS[name](image).enhance(argument)  # as timm does
    from timm.data.auto_augment import NAME_TO_OP  # imports all of timm, which takes seconds; only "deit" needs it

    arguments = () if argument is None else (argument,)
    return NAME_TO_OP[name](image, *arguments, resample=Image.Resampling.BILINEAR, fillcolor=FILL)
