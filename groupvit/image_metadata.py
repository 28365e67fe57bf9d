"""Reads the orientation from the metadata of image files, and removes all metadata before decoding.

So invalid comments, profiles or camera data of any size cannot make an image unusable. Pillow would check them and
reject the whole file for some.
"""

import re
import struct
import zlib
from collections.abc import Iterator

_ORIENTATION = 274  # EXIF tag
_SHORT, _LONG = 3, 4  # EXIF types
_MAX_PROFILE = 2**20  # bytes of an EXIF block stored as text that are read; the orientation is near its start
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')

_JPEG_START, _PNG_START = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_APP0, _APP1, _APP14, _APP15, _COMMENT = 0xE0, 0xE1, 0xEE, 0xEF, 0xFE
_LEAST_BYTES = {_APP0: 14, _APP14: 12}  # of the segments that define a JPEG's colours; shorter ones are invalid
_PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"acTL", b"fcTL", b"fdAT")
"""Chunks that hold a PNG's pixels, transparency and animation."""


def is_jpeg(data: bytes) -> bool:
    return data.startswith(_JPEG_START)


def is_png(data: bytes) -> bool:
    return data.startswith(_PNG_START)


def file_orientation(data: bytes) -> int:
    """EXIF orientation of a JPEG or PNG file, 1 to 8; 1 (upright) if it has no valid one."""
    if is_jpeg(data):
        if b"\xff\xe1" not in data:  # no APP1 segment, which is where both EXIF and XMP are
            return 1
        found = _jpeg_orientations(data)
    elif is_png(data):
        found = _png_orientations(data)
    else:
        return 1
    return next((value for value in found if value is not None), 1)


def block_orientation(exif: bytes | None, xmp: bytes | None) -> int:
    """EXIF orientation from the EXIF and XMP blocks of a file in any other format; 1 if there is no valid one."""
    found = (exif and exif_orientation(exif), xmp and xmp_orientation(xmp))
    return next((value for value in found if value), 1)


def exif_orientation(block: bytes) -> int | None:
    """Orientation in an EXIF block (a TIFF header and directory, maybe after "Exif\\0\\0"); None if none is valid."""
    while block.startswith(b"Exif\0\0"):
        block = block[6:]
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None or len(block) < 10:
        return None
    start = struct.unpack_from(f"{order}I", block, 4)[0]
    if start + 2 > len(block):
        return None
    end = start + 2 + 12 * struct.unpack_from(f"{order}H", block, start)[0]
    for place in range(start + 2, min(end, len(block) - 11), 12):
        tag, kind, count = struct.unpack_from(f"{order}HHI", block, place)
        if tag == _ORIENTATION:
            if count != 1 or kind not in (_SHORT, _LONG):
                return None
            value = struct.unpack_from(f"{order}{'H' if kind == _SHORT else 'I'}", block, place + 8)[0]
            return value if 1 <= value <= 8 else None
    return None


def xmp_orientation(packet: bytes) -> int | None:
    match = _XMP_ORIENTATION.search(packet)
    return int(match[1]) if match else None


def without_metadata(data: bytes) -> bytes:
    """Remove everything from a JPEG or PNG file that its pixels do not need. Other files are returned unchanged."""
    if is_jpeg(data):
        return _kept(
            data, [(start, end) for marker, start, end in _segments(data) if not _is_jpeg_pixels(marker, end - start)]
        )
    if is_png(data):
        return _kept(data, [(start, end) for kind, start, end in _chunks(data) if kind not in _PNG_CHUNKS])
    return data


def _kept(data: bytes, left_out: list[tuple[int, int]]) -> bytes:
    if not left_out:
        return data
    starts, ends = [0, *(end for _, end in left_out)], [*(start for start, _ in left_out), len(data)]
    view = memoryview(data)
    return b"".join(view[start:end] for start, end in zip(starts, ends, strict=True))


def _is_jpeg_pixels(marker: int, size: int) -> bool:
    if marker in _LEAST_BYTES:
        return size >= 4 + _LEAST_BYTES[marker]
    return not (_APP0 <= marker <= _APP15 or marker == _COMMENT)


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, start, end) of the complete segments of a JPEG before its first scan."""
    place = 2
    while (place := data.find(b"\xff", place)) >= 0 and place + 4 <= len(data):
        marker = data[place + 1]
        if marker == 0xFF:  # padding
            place += 1
        elif marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:  # without content
            place += 2
        elif marker in (0xD9, 0xDA):
            return
        else:
            end = place + 2 + int.from_bytes(data[place + 2 : place + 4])
            if end < place + 4 or end > len(data):
                return
            yield marker, place, end
            place = end


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield (type, start, end) of the complete chunks of a PNG."""
    place = len(_PNG_START)
    while place + 12 <= len(data):
        kind = data[place + 4 : place + 8]
        end = place + 12 + int.from_bytes(data[place : place + 4])
        if end > len(data) or not kind.isalpha():
            return
        yield kind, place, end
        place = end


def _jpeg_orientations(data: bytes) -> Iterator[int | None]:
    blocks = [data[start + 4 : end] for marker, start, end in _segments(data) if marker == _APP1]
    yield from (exif_orientation(block) for block in blocks if block.startswith(b"Exif\0\0"))
    yield from (xmp_orientation(block) for block in blocks if block.startswith(b"http://ns.adobe.com/xap/1.0/\0"))


def _png_orientations(data: bytes) -> Iterator[int | None]:
    blocks = [(kind, data[start + 8 : end - 4]) for kind, start, end in _chunks(data) if kind not in _PNG_CHUNKS]
    yield from (exif_orientation(block) for kind, block in blocks if kind == b"eXIf")
    yield from (exif_orientation(_profile(kind, block)) for kind, block in blocks if kind in (b"tEXt", b"zTXt"))
    yield from (xmp_orientation(block) for kind, block in blocks if block.startswith(b"XML:com.adobe.xmp\0"))


def _profile(kind: bytes, block: bytes) -> bytes:
    """Decode an EXIF block that ImageMagick stores as hexadecimal text. Empty if the chunk is another text."""
    name, _, text = block.partition(b"\0")
    if name != b"Raw profile type exif":
        return b""
    try:
        text = zlib.decompressobj().decompress(text[1:], _MAX_PROFILE) if kind == b"zTXt" else text[:_MAX_PROFILE]
        digits = b"".join(text.split(b"\n")[3:])
        return bytes.fromhex(digits[: len(digits) // 2 * 2].decode("ascii"))
    except (zlib.error, ValueError):
        return b""
