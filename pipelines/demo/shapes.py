"""The `shapes` demo data: drawn objects on drawn backgrounds, for tests and for machines without apt.

Run: `groupvit demo-data shapes --out DIR`. Nothing is downloaded. A class is a shape, and its cut-outs differ in
colour. Unseen cut-outs have colours that training never shows for that shape.
"""

import cv2
import numpy as np

from pipelines.demo.compose import Background, Cutout, make_cutout
from pipelines.demo.material import Material

CUTOUT_SIDE = 128  # pixels
SUPERSAMPLING = 4  # shapes are drawn larger and shrunk, which smooths their edges
BACKGROUND_SIZE = (320, 400)  # rows, columns
NUM_TRAINING_BACKGROUNDS, NUM_VALIDATION_BACKGROUNDS = 4, 2  # of each kind

COLOURS = {
    "red": (205, 40, 45),
    "orange": (240, 140, 30),
    "yellow": (240, 215, 60),
    "green": (50, 150, 70),
    "blue": (45, 85, 200),
    "purple": (130, 60, 165),
    "pink": (240, 130, 180),
    "white": (238, 238, 232),
}


def _regular(num_corners: int, inner: float = 1.0) -> np.ndarray:
    """Returns corners on a circle, [num_corners, 2] in −1 … 1, with every second one at the radius `inner`."""
    angles = np.arange(num_corners) * 2 * np.pi / num_corners - np.pi / 2
    radii = np.where(np.arange(num_corners) % 2 == 0, 1.0, inner)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None]


_HEART_PARAMETER = np.linspace(0, 2 * np.pi, 80, endpoint=False)
OUTLINES: dict[str, np.ndarray] = {
    "circle": _regular(96),
    "triangle": _regular(3),
    "square": np.array([(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]),
    "star": _regular(10, inner=0.42),
    "cross": np.array(
        [
            *[(-3, -10), (3, -10), (3, -3), (10, -3), (10, 3), (3, 3)],
            *[(3, 10), (-3, 10), (-3, 3), (-10, 3), (-10, -3), (-3, -3)],
        ]
    )
    / 10,
    "heart": np.stack(
        [
            np.sin(_HEART_PARAMETER) ** 3,
            -(13 * np.cos(_HEART_PARAMETER) - 5 * np.cos(2 * _HEART_PARAMETER) - 2 * np.cos(3 * _HEART_PARAMETER)
              - np.cos(4 * _HEART_PARAMETER)) / 17,
        ],
        axis=1,
    ),
    "arrow": np.array([(-1, -0.28), (0.15, -0.28), (0.15, -0.8), (1, 0), (0.15, 0.8), (0.15, 0.28), (-1, 0.28)]),
    "moon": np.concatenate(
        [
            np.stack([np.cos(t), np.sin(t)], axis=1) * radius + (shift, 0)
            for radius, shift, t in (
                (1.0, 0.0, np.linspace(0.9, 2 * np.pi - 0.9, 60)),
                (0.8, 0.42, np.linspace(2 * np.pi - 1.35, 1.35, 60)),
            )
        ]
    ),
}  # fmt: skip

BACKGROUND_KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "plain": ("on a plain wall", ("wall",)),
    "stripes": ("on a striped cloth", ("cloth",)),
    "checks": ("on a floor of tiles", ("floor", "tiles")),
    "fog": ("in the fog", ("fog",)),
    "sand": ("on the sand", ("sand",)),
}


def load_shapes() -> Material:
    """Draws all cut-outs and backgrounds, always the same ones (about 1 s)."""
    seen: dict[str, list[Cutout]] = {}
    unseen: dict[str, list[Cutout]] = {}
    for index, (noun, outline) in enumerate(OUTLINES.items()):
        for position, colour in enumerate(COLOURS.values()):
            rng = np.random.default_rng([index, position])
            cutout = make_cutout(noun, _draw(outline, colour, rng))
            held_out = (position + index) % 4 == 3  # two of eight colours, different ones for each shape
            (unseen if held_out else seen).setdefault(noun, []).append(cutout)
    training = _backgrounds(range(NUM_TRAINING_BACKGROUNDS))
    total = NUM_TRAINING_BACKGROUNDS + NUM_VALIDATION_BACKGROUNDS
    return Material(
        name="shapes",
        classes=tuple(OUTLINES),
        seen=seen,
        unseen=unseen,
        distractors={},
        training_backgrounds=training,
        calibration_backgrounds=training,
        validation_backgrounds=_backgrounds(range(NUM_TRAINING_BACKGROUNDS, total)),
    )


def _draw(outline: np.ndarray, colour: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    """Draws uint8 [CUTOUT_SIDE, CUTOUT_SIDE, 4]: the shape in its colour, shaded from one side, with a little grain."""
    large = CUTOUT_SIDE * SUPERSAMPLING
    alpha = np.zeros((large, large), np.uint8)
    corners = (outline * 0.47 + 0.5) * large
    cv2.fillPoly(alpha, [corners.round().astype(np.int32)], 255)
    alpha = cv2.resize(alpha, (CUTOUT_SIDE, CUTOUT_SIDE), interpolation=cv2.INTER_AREA)
    across = np.linspace(-1, 1, CUTOUT_SIDE)
    shade = 1 + 0.18 * (across[:, None] * rng.uniform(-1, 1) + across * rng.uniform(-1, 1))
    grain = 1 + 0.05 * rng.standard_normal((CUTOUT_SIDE, CUTOUT_SIDE))
    pixels = np.clip(np.array(colour) * (shade * grain)[..., None], 0, 255).astype(np.uint8)
    return np.dstack([pixels, alpha])


def _backgrounds(variants: range) -> list[Background]:
    return [
        Background(image=_paint(kind, np.random.default_rng([99, index, variant])), phrase=phrase, nouns=nouns)
        for index, (kind, (phrase, nouns)) in enumerate(BACKGROUND_KINDS.items())
        for variant in variants
    ]


def _paint(kind: str, rng: np.random.Generator) -> np.ndarray:
    """Paints uint8 [rows, columns, 3]: two muted colours in the pattern of the kind."""
    rows, columns = BACKGROUND_SIZE
    y, x = np.mgrid[:rows, :columns].astype(np.float32)
    first, second = (np.clip(rng.uniform(70, 190) + rng.uniform(-30, 30, 3), 0, 255) for _ in range(2))
    if kind == "plain":
        blend = (y / rows * rng.uniform(0.2, 0.6)).astype(np.float32)
    elif kind == "stripes":
        angle, period = rng.uniform(0, np.pi), rng.uniform(24, 60)
        blend = 0.5 + 0.5 * np.tanh(4 * np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period))
    elif kind == "checks":
        side = int(rng.integers(24, 56))
        blend = ((x // side + y // side) % 2).astype(np.float32)
    else:
        coarse = 8 if kind == "fog" else 80
        noise = rng.random((coarse, coarse)).astype(np.float32)
        blend = cv2.resize(noise, (columns, rows), interpolation=cv2.INTER_CUBIC)
    image = first + (second - first) * blend[..., None]
    return np.clip(image + rng.normal(0, 3, image.shape), 0, 255).astype(np.uint8)
