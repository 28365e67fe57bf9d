"""Recognises files that users pass by mistake instead of a checkpoint, by their first bytes."""

START_BYTES = 512
"""Number of bytes of a file that `other_kind` needs."""

_OTHER_FILES = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the file that it stands for: fetch that with git lfs pull"),
    (b"\x1f\x8b", "is compressed by gzip: decompress it, and give the file in it"),
    (b"BZh", "is compressed by bzip2: decompress it, and give the file in it"),
    (b"\xfd7zXZ", "is compressed by xz: decompress it, and give the file in it"),
    (b"\x28\xb5\x2f\xfd", "is compressed by zstd: decompress it, and give the file in it"),
    (b"7z\xbc\xaf", "is a 7-Zip archive: extract it, and give the file of weights"),
    (b"Rar!", "is a RAR archive: extract it, and give the file of weights"),
    (b"\x89HDF", "is an HDF5 file, as Keras writes: give weights of PyTorch"),
)


def other_kind(start: bytes) -> str | None:
    """Name the kind of a file by its first bytes, and what to do; None if unknown. The text follows a file name."""
    if not start:
        return "is empty: it was cut short, so fetch it again"
    for magic, kind in _OTHER_FILES:
        if start.startswith(magic):
            return kind
    if start[257:262] == b"ustar":
        return "is a tar archive: extract it, and give the file of weights"
    text = start.decode("utf-8", errors="replace").lstrip("\ufeff \r\n\t")
    if text.lower().startswith(("<!doctype html", "<html", "<head", "<?xml", "<!--")):
        return "is a web page, not the file: its address needs a login, or another address for the file itself"
    return None
