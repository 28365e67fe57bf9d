"""Detects from its first bytes what a file holds, if its name says something else."""

import codecs

_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"PK\x03\x04", "a zip archive, as xlsx and ods files are", "save the list as csv in UTF-8, or unpack it"),
    (b"\xd0\xcf\x11\xe0", "an xls workbook", "save the list as csv in UTF-8"),
    (b"SQLite format 3\0", "an SQLite database", "export its table as csv"),
    (b"PAR1", "Parquet", "give it a name that ends in .parquet"),
    (b"ARROW1", "an Arrow file", "write it as Parquet"),
    (b"\x89HDF", "an HDF5 file", "write it as Parquet"),
    (b"\x80\x04\x95", "a pickle", "write it as Parquet"),
    (b"\x80\x05\x95", "a pickle", "write it as Parquet"),
    (b"\x1f\x8b", "compressed with gzip", "add .gz to its name"),
    (b"BZh", "compressed with bzip2", "add .bz2 to its name"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "add .zst to its name"),
    (b"\xfd7zXZ", "compressed with xz", "unpack it, or compress it with gzip"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "fetch the file with git lfs pull"),
)
_COMPRESSIONS = {"gz": b"\x1f\x8b", "bz2": b"BZh", "zst": b"\x28\xb5\x2f\xfd"}
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_ENOUGH = 64  # bytes
START = 1024
"""Number of bytes that are enough to identify a file."""


def check_compression(uri: str, start: bytes) -> None:
    """Raises ValueError, in one line, if a file is not compressed as its name says."""
    ending = uri.rpartition(".")[2].lower()
    if start and ending in _COMPRESSIONS and not start.startswith(_COMPRESSIONS[ending]):
        raise ValueError(f"{uri}: is not compressed with {ending}, it starts with {start[:8]!r}; remove .{ending}")


def check_text(uri: str, start: bytes) -> None:
    """Raises ValueError, in one line, if the first bytes of a file, decompressed, are not text in UTF-8."""
    check_magic(uri, start)
    for mark, name in _BYTE_ORDER_MARKS:
        if start.startswith(mark):
            _refuse_encoding(uri, name, start)
    zeros = start[:_ENOUGH].count(0)
    if zeros and zeros >= len(start[:_ENOUGH]) // 4:  # ASCII text in UTF-16 has a zero in every pair of bytes
        _refuse_encoding(uri, "UTF-16" if zeros < len(start[:_ENOUGH]) * 5 // 8 else "UTF-32", start)
    text = start.removeprefix(codecs.BOM_UTF8).lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html")):
        raise ValueError(f"{uri}: line 1: is an HTML page, not a list; download the list itself")


def check_magic(uri: str, start: bytes) -> None:
    """Raises ValueError, in one line, if a file is of another known kind."""
    for magic, what, fix in _MAGIC:
        if start.startswith(magic):
            raise ValueError(f"{uri}: is {what}; {fix}")


def _refuse_encoding(uri: str, name: str, start: bytes) -> None:
    raise ValueError(
        f"{uri}: line 1: is encoded in {name} (starts with {start[:4].hex(' ')}); convert it to UTF-8, e.g. iconv -f "
        f"{name} -t UTF-8"
    )
