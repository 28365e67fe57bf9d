"""Reads the pictures that users point at: upright, of a bounded size, from a disk or object storage."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from groupvit.decode import decode_upright
from pipelines import storage

MAX_BYTES = 2**28
"""Largest file that is read, 268 MB: more than an image of the largest size takes without compression."""


def read_picture(uri: str) -> NDArray[np.uint8]:
    """RGB uint8 [H, W, 3] as a person sees it. ValueError, with the path, for what is no image or too large a one."""
    try:
        if "://" not in uri and Path(uri).is_dir():
            raise ValueError(f"image={uri} is a folder: give image files, like {uri.rstrip('/')}/*.jpg")
        if "://" not in uri and Path(uri).stat().st_size > MAX_BYTES:
            raise ValueError(f"image={uri} has more than {MAX_BYTES:,} bytes: shrink it")
        data = storage.read_bytes(uri)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"image={uri} does not exist: give an image file") from None
    except PermissionError:
        raise ValueError(f"image={uri} may not be read: give its owner's leave, or another file") from None
    try:
        return decode_upright(data)
    except ValueError as error:
        raise ValueError(f"image={uri}: {str(error).removeprefix('image: ')}") from None
