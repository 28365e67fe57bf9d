"""Reads a tar from its start to its end, without unpacking it: the headers by Python's `tarfile`, every size checked.

`tarfile` itself would keep a list of all members in memory, and read a header of any size.
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from pipelines import storage

_CHUNK = 2**22  # bytes read at a time
BLOCK = tarfile.BLOCKSIZE
_ZEROS = bytes(BLOCK)
_LONGEST_HEADER = 2**20  # bytes of an extended header
END_MARK = 2 * BLOCK
"""Number of zero bytes at the end of a complete tar."""


class ByteStream:
    """A file that is read forward, in chunks of 4 MB. Storage that fails is tried again.

    Args:
        start: Where to begin, in bytes.
    """

    def __init__(self, uri: str, start: int = 0) -> None:
        filesystem, path = storage.resolve(uri)
        self._uri = uri
        self._file = storage.retry(lambda: filesystem.open_input_file(path), uri)
        self.size = storage.retry(self._file.size, uri)
        self._chunk, self._first = b"", start  # bytes in memory, and their position in the file
        self.position = start

    def read(self, num_bytes: int) -> bytes:
        """Returns the next bytes: fewer only at the end of the file."""
        parts: list[bytes] = []
        while num_bytes > 0 and self.position < self.size:
            at = self.position - self._first
            if not 0 <= at < len(self._chunk):
                self._fetch(max(num_bytes, _CHUNK))
                at = 0
            part = self._chunk[at : at + num_bytes]
            if not part:  # the file became shorter
                break
            parts.append(part)
            num_bytes -= len(part)
            self.position += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def skip_to(self, position: int) -> None:
        """Goes forward. What is passed over is not read, unless it is in memory."""
        assert position >= self.position, "a stream is read forward"
        self.position = position

    def _fetch(self, num_bytes: int) -> None:
        self._first = self.position
        self._chunk = storage.retry(lambda: self._file.read_at(num_bytes, self._first), self._uri)


@dataclass(frozen=True, kw_only=True)
class Member:
    """What a header says of a member. Its content is next in the stream."""

    name: str
    size: int
    """Number of bytes; 0 unless it is a file."""
    is_file: bool
    is_link: bool


def members(stream: ByteStream) -> Iterator[Member]:
    """Yields the members of a tar, or of several that were concatenated. Between two, the caller may read content.

    Raises ValueError if a header is invalid, a member is cut, or the mark at the end is missing.
    """
    zeros, longer_name, extended = 0, None, {}
    while True:
        start = stream.position
        block = stream.read(BLOCK)
        if len(block) < BLOCK and zeros >= END_MARK and not block.strip(b"\0"):
            return
        if len(block) < BLOCK:
            raise ValueError(f"it is cut at byte {start + len(block):,}: {_MARK}")
        if block == _ZEROS:
            zeros += BLOCK
            continue
        zeros = 0
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise ValueError(f"at byte {start:,}: {error}") from None
        if header.type in (
            tarfile.GNUTYPE_LONGNAME,
            tarfile.GNUTYPE_LONGLINK,
            tarfile.XHDTYPE,
            tarfile.SOLARIS_XHDTYPE,
        ):
            content = _extended(stream, header.size, start)
            if header.type == tarfile.GNUTYPE_LONGNAME:
                longer_name = content.rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif header.type != tarfile.GNUTYPE_LONGLINK:
                extended = _records(content, start)
            continue
        size = int(extended.get("size", header.size))
        if header.type == tarfile.GNUTYPE_SPARSE or any(name.startswith("GNU.sparse") for name in extended):
            raise ValueError(f"at byte {start:,}: a sparse member; write the tar without --sparse")
        has_content = header.isreg() or header.type not in tarfile.SUPPORTED_TYPES or header.type == tarfile.XGLTYPE
        end = stream.position + (-(-size // BLOCK) * BLOCK if has_content else 0)
        name = longer_name or extended.get("path") or header.name
        if size < 0 or stream.position + (size if has_content else 0) > stream.size:
            raise ValueError(f"it is cut at byte {stream.size:,}, in its member {name[:100]!a}")
        longer_name, extended = None, {}
        if header.type != tarfile.XGLTYPE:
            is_link = header.issym() or header.islnk()
            yield Member(name=name, size=size if header.isreg() else 0, is_file=header.isreg(), is_link=is_link)
        stream.skip_to(end)


_MARK = "the mark at the end of a complete tar is missing"


def is_complete(uri: str) -> bool:
    """Whether a tar has the mark at its end: one small read."""
    stream = ByteStream(uri)
    stream.skip_to(max(0, stream.size - END_MARK))
    return stream.read(END_MARK) == bytes(END_MARK)


def _extended(stream: ByteStream, size: int, start: int) -> bytes:
    if not 0 <= size <= _LONGEST_HEADER:
        raise ValueError(f"at byte {start:,}: an extended header of {size:,} bytes")
    content = stream.read(size)
    stream.skip_to(stream.position + -size % BLOCK)
    return content


def _records(content: bytes, start: int) -> dict[str, str]:
    """Parses records `LENGTH NAME=VALUE` of an extended header (POSIX pax)."""
    records: dict[str, str] = {}
    content, at = content.rstrip(b"\0"), 0
    while at < len(content):
        space = content.find(b" ", at, at + 8)
        length = content[at:space]
        if space < 0 or not length.isdigit() or not space < at + int(length) <= len(content):
            raise ValueError(f"at byte {start:,}: an invalid extended header")
        name, _, value = content[space + 1 : at + int(length)].removesuffix(b"\n").partition(b"=")
        records[name.decode(errors="replace")] = value.decode("utf-8", "surrogateescape")
        at += int(length)
    if "size" in records and not (records["size"].isdecimal() and len(records["size"]) < 20):
        raise ValueError(f"at byte {start:,}: an invalid extended header")
    return records
