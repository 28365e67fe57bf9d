"""Checks names of folders, and splits `NAME=URI`, in which a name may stand before a folder."""

from pathlib import Path

LONGEST_NAME = 255
"""Maximum number of UTF-8 bytes in a name that file systems accept."""


def check_folder_name(field: str, name: str, reserved: tuple[str, ...] = ()) -> None:
    """Raise ValueError unless a folder can have the name on any file system and in object storage."""
    advice = "give letters, digits, - and _"
    if not name or "/" in name or name.startswith("."):
        raise ValueError(f"{field}={name!r} is not a folder name: {advice}")
    if not name.isprintable():  # control characters, and bytes that are not UTF-8
        raise ValueError(f"{field}={name!a} has a character that cannot be printed: {advice}")
    if (length := len(name.encode())) > LONGEST_NAME:
        raise ValueError(
            f"{field}={name[:20]}... is {length} bytes long in UTF-8, more than file systems take: "
            f"give at most {LONGEST_NAME}"
        )
    if name in reserved:
        raise ValueError(f"{field}={name!r} is the name of something else in that folder: give another")


def split_name(text: str) -> tuple[str | None, str]:
    """Return the name and the folder of `[NAME=]URI`. A name contains no `/` and no `:`. The path of an existing folder
    is not split, as in `year=2020/train`."""
    name, equals, uri = text.partition("=")
    if not equals or not name or "/" in name or ":" in name or Path(text).expanduser().exists():
        return None, text
    return name, uri
