"""Label Studio's encoding of what its brush has drawn: run lengths of the bytes of an RGBA image, packed into bits.

32 bits: number of bytes (4 · H · W); 5 bits: bits of a byte − 1; 4 × 4 bits: sizes of numbers − 1. Then, until all
bytes are there: 1 bit (1: a run of one byte, 0: different bytes), 2 bits (which size), a number of that size (length
− 1), and the byte or the bytes. `label_studio_sdk.converter.brush` writes and reads the same.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_SIZES = (3, 4, 8, 16)
_LONGEST_RUN = 2**16
_HEADER_BITS = 32 + 5 + 4 * 4


def encode_brush(mask: NDArray[np.bool_]) -> list[int]:
    """Encodes a mask bool [H, W] as bytes 0 to 255, the same as those of `label_studio_sdk`'s `mask2rle`.

    All four channels of a pixel of the mask are 255. Label Studio shows pixels by the last, their opacity.
    """
    flat = mask.ravel()
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]), flat.size - 1)
    lengths, values = 4 * np.diff(ends, prepend=-1), 255 * flat[ends].astype(np.int64)
    pieces = -(-lengths // _LONGEST_RUN)  # longer runs are cut; the last piece is the rest
    values = np.repeat(values, pieces)
    rests = lengths - (pieces - 1) * _LONGEST_RUN
    lengths = np.full(len(values), _LONGEST_RUN)
    lengths[np.cumsum(pieces) - 1] = rests
    which = np.searchsorted([2**size for size in _SIZES], lengths)
    sizes = np.array(_SIZES)[which]
    tokens = ((4 + which) << (sizes + 8)) | ((lengths - 1) << 8) | values  # 1, which, length − 1, value
    header = f"{4 * flat.size:032b}{8 - 1:05b}" + "".join(f"{size - 1:04b}" for size in _SIZES)
    bits = np.concatenate([np.array(list(header), dtype=np.uint8), _joined(tokens, 3 + sizes + 8)])
    padding = 8 - len(bits) % 8  # a whole byte if none is needed, as the SDK does
    return np.packbits(np.append(bits, np.zeros(padding, dtype=np.uint8))).tolist()


def decode_brush(rle: Sequence[int], height: int, width: int) -> NDArray[np.bool_]:
    """Decodes bytes 0 to 255 to the mask bool [H, W] of the pixels that are not fully transparent.

    Raises ValueError if they are not the encoding of an RGBA image of this size.
    """
    if not rle or min(rle) < 0 or max(rle) > 255:
        raise ValueError("a brush's rle is not a list of bytes, 0 to 255")
    data = bytes(rle)
    num_bits = 8 * len(data)

    def number(position: int, size: int) -> int:
        """Reads up to 32 bits."""
        if position + size > num_bits:
            raise ValueError(f"a brush's rle ends before the {width}×{height} pixels do")
        first = position >> 3
        chunk = int.from_bytes(data[first : first + 5].ljust(5, b"\0"), "big")
        return (chunk >> (40 - (position & 7) - size)) & ((1 << size) - 1)

    num_bytes = number(0, 32)
    if num_bytes != 4 * height * width:
        raise ValueError(f"a brush's rle has {num_bytes:,} bytes, but 4 · {width} · {height} are expected")
    if number(32, 5) != 8 - 1:
        raise ValueError(f"a brush's rle has values of {number(32, 5) + 1} bits: 8 are expected")
    sizes = [number(37 + 4 * index, 4) + 1 for index in range(4)]
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8))
    out = np.zeros(num_bytes, dtype=np.uint8)
    position, done = _HEADER_BITS, 0
    while done < num_bytes:
        head = number(position, 3)
        size = sizes[head & 3]
        length = number(position + 3, size) + 1
        position += 3 + size
        if done + length > num_bytes:
            raise ValueError(f"a brush's rle has more than the {width}×{height} pixels")
        if head & 4:
            out[done : done + length] = number(position, 8)
            position += 8
        else:
            end = position + 8 * length
            if end > num_bits:
                raise ValueError(f"a brush's rle ends before the {width}×{height} pixels do")
            out[done : done + length] = np.packbits(bits[position:end])
            position = end
        done += length
    return out.reshape(height, width, 4)[..., 3] > 0


def _joined(tokens: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Joins the lowest `sizes` bits of each token, at most 32, highest first."""
    aligned = (tokens << (32 - sizes)).astype(">u4")
    bits = np.unpackbits(aligned.view(np.uint8)).reshape(-1, 32)
    return bits[np.arange(32) < sizes[:, None]]
