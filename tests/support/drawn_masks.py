"""Masks that are drawn by formulas: other packages have encoded the same ones; see the files in tests/data."""

import numpy as np
from numpy.typing import NDArray


def drawn_mask(name: str) -> NDArray[np.bool_]:
    """Returns the mask that pycocotools and label_studio_sdk have encoded under this name."""
    y, x = np.mgrid[:61, :97]
    yy, xx = np.mgrid[:400, :300]
    return {
        "ellipse": ((y - 30) / 20) ** 2 + ((x - 40) / 33) ** 2 < 1,
        "stripes": (x * 7 + y * 3) % 31 < 9,
        "all": np.ones((61, 97), dtype=bool),
        "none": np.zeros((61, 97), dtype=bool),
        "corner": x + y < 5,
        "wide": np.sin(xx / 30) * 150 + 200 > yy,
    }[name]


def soft_alpha(height: int = 24, width: int = 31) -> NDArray[np.uint8]:
    """The opacity [H, W] of what a brush with a soft edge has drawn."""
    y, x = np.mgrid[:height, :width]
    distance = np.hypot(y - height / 2, x - width / 2)
    return np.clip((9 - distance) * 60, 0, 255).astype(np.uint8)
