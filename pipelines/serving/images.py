"""Reads the pictures that users name: upright, of a bounded size, from disk or object storage."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from groupvit.decode import decode_upright
from pipelines import storage

MAX_BYTES = 2**28
"""Largest file that is read, 268 MB. An uncompressed image of the largest allowed size is smaller."""


def read_picture(uri: str) -> NDArray[np.uint8]:
    """Reads a picture as upright RGB uint8 [H, W, 3]. Raises ValueError with the path if it is invalid or too large."""
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
