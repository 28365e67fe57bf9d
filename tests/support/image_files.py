"""Image files written by hand: PNG chunks, EXIF blocks and JPEG segments of any content."""

import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from PIL import Image


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(pixels: np.ndarray) -> bytes:
    return encoded(Image.fromarray(pixels), "PNG")


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def write_png(samples: np.ndarray, *, bits: int, color_type: int = 0, extra: Sequence[bytes] = ()) -> bytes:
    """A PNG of these samples [H, W] or [H, W, channels], packed into `bits` each. `extra` chunks go before the data."""
    height, width = samples.shape[:2]
    rows = []
    for row in samples.reshape(height, -1).tolist():
        text = "".join(format(sample, f"0{bits}b") for sample in row)
        text += "0" * (-len(text) % 8)
        rows.append(b"\0" + int(text, 2).to_bytes(len(text) // 8))  # filter 0: none
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    chunks = [png_chunk(b"IHDR", header), *extra, png_chunk(b"IDAT", zlib.compress(b"".join(rows)))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + png_chunk(b"IEND", b"")


def with_chunk(png: bytes, kind: bytes, content: bytes, *, at_the_end: bool = False) -> bytes:
    """The PNG with one more chunk, after its header or before its end."""
    place = len(png) - 12 if at_the_end else 33
    return png[:place] + png_chunk(kind, content) + png[place:]


def with_segment(jpeg: bytes, marker: int, content: bytes) -> bytes:
    """The JPEG with one more segment, before all others."""
    return jpeg[:2] + struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content + jpeg[2:]


def exif_block(entries: Sequence[tuple[int, int, int, bytes]], order: str = "<", rest: bytes = b"") -> bytes:
    """An EXIF block of (tag, type, count, 4 bytes of value or offset); "<" is little-endian, ">" big-endian."""
    directory = struct.pack(f"{order}H", len(entries))
    for tag, kind, count, value in entries:
        directory += struct.pack(f"{order}HHI", tag, kind, count) + value
    head = b"II*\0" if order == "<" else b"MM\0*"
    return b"Exif\0\0" + head + struct.pack(f"{order}I", 8) + directory + bytes(4) + rest


def orientation_entry(value: int, order: str = "<") -> tuple[int, int, int, bytes]:
    return (274, 3, 1, struct.pack(f"{order}HH", value, 0))


def png_that_promises(width: int, height: int) -> bytes:
    """A PNG of some bytes whose header gives this size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(bytes(999))) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content
