"""Finds the pictures that users name: files, folders, and patterns like `photos/**/*.jpg`, on disk or on `s3://`."""

import fnmatch
import glob
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipelines import storage

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
"""Endings, in any case, of the files that are taken from a folder."""
MAX_IMAGES = 100_000
_MAGIC = re.compile(r"[*?[]")


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image file to be read."""

    uri: str
    name: str
    """Path from the folder that was given, or from where its pattern begins; the name alone of a file that was given.
    Its parts are separated by slashes."""

    @property
    def stem(self) -> str:
        """The name without its ending."""
        return str(PurePosixPath(self.name).with_suffix(""))


def find_pictures(given: Sequence[str], out: str) -> list[Picture]:
    """Returns the image files in the order in which they are given, those of a folder or a pattern sorted by name.

    A folder stands for all files in it and below it that have one of `ENDINGS`; a pattern, with `*`, `?`, `[abc]` and
    `**` for any folders, for all files that it matches. Both leave out what lies in `out`, hidden files, and files
    that were found already. A file need not exist.

    On s3://, what has no such ending is a folder. Raises ValueError for a folder or a pattern without files, and for
    more than `MAX_IMAGES`.
    """
    pictures: list[Picture] = []
    seen: set[str] = set()
    written = f"{storage.absolute(out)}/"
    for uri in given:
        found = _in_folder(uri)
        if found is None:
            found = _matching(uri)
        if found is None:
            pictures.append(Picture(uri=uri, name=PurePosixPath(uri).name))
            seen.add(storage.absolute(uri))
            continue
        for picture in found:
            place = storage.absolute(picture.uri)
            if place not in seen and not place.startswith(written):
                pictures.append(picture)
                seen.add(place)
            if len(pictures) > MAX_IMAGES:
                raise ValueError(f"images={uri} makes more than {MAX_IMAGES:,} images: give them in parts")
    if not pictures:
        raise ValueError(f"images={' '.join(given)} has only files of out={out}: give another folder for out")
    return pictures


def refuse_same_names(pictures: Sequence[Picture], *, with_ending: bool, kind: str) -> None:
    """Raises ValueError if the files of two images would have the same name, also where case does not matter.

    `with_ending`: whether the ending of an image is part of the name.
    """
    taken: dict[str, Picture] = {}
    for picture in pictures:
        key = (picture.name if with_ending else picture.stem).casefold()
        if key in taken:
            raise ValueError(
                f"images={taken[key].uri} and {picture.uri} would have the same name in format={kind}: rename one, or "
                "segment them with different values of out"
            )
        taken[key] = picture


def _in_folder(uri: str) -> list[Picture] | None:
    """Returns the images in a folder; None if it is none."""
    if "://" in uri:
        is_folder = _MAGIC.search(uri) is None and PurePosixPath(uri).suffix.lower() not in ENDINGS
    else:
        is_folder = Path(uri).is_dir()
    if not is_folder:
        return None
    sizes = storage.list_sizes(uri)
    found = [
        Picture(uri=storage.join(uri, name), name=name)
        for name in sizes
        if PurePosixPath(name).suffix.lower() in ENDINGS
    ]
    if not found:
        raise ValueError(f"images={uri} is a folder without images: give image files ({', '.join(ENDINGS)})")
    return found


def _matching(uri: str) -> list[Picture] | None:
    """Returns the files that a pattern matches; None if it is none, or the name of a file."""
    if _MAGIC.search(uri) is None or ("://" not in uri and Path(uri).exists()):
        return None
    parts = uri.split("/")
    fixed = next(index for index, part in enumerate(parts) if _MAGIC.search(part))
    root, pattern = "/".join(parts[:fixed]), parts[fixed:]
    if ".." in pattern:
        raise ValueError(f"images={uri} leads out of its folders by ..: give another pattern")
    if "://" in uri:
        names = [name for name in storage.list_sizes(root) if _matches(name.split("/"), pattern)]
    else:
        base = root or ("/" if uri.startswith("/") else ".")
        names = sorted(set(_local(base, "/".join(pattern))))
    if not names:
        raise ValueError(f"images={uri} matches no file: give another pattern, or quote it")
    prefix = f"{root}/" if fixed else ""
    return [Picture(uri=f"{prefix}{name}", name=name) for name in names]


def _local(base: str, pattern: str) -> Iterator[str]:
    for name in glob.iglob(pattern, root_dir=base, recursive=True):
        if storage.is_data(name) and (Path(base) / name).is_file():
            yield name


def _matches(names: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path matches a pattern, part by part. `**` matches any number of folders, and at the end all files."""
    if not pattern:
        return not names
    if pattern[0] == "**":
        return any(_matches(names[start:], pattern[1:]) for start in range(len(names) + 1))
    return bool(names) and fnmatch.fnmatchcase(names[0], pattern[0]) and _matches(names[1:], pattern[1:])
