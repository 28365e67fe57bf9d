"""Benchmarks that consist of pairs of files: an image and a label file (a PNG whose samples are labels).

Benchmarks differ in which files they are, and in the meaning of a value of a label file: `label_of_value`. The folder
may be a local path or an s3:// URI.
"""

import hashlib
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from groupvit.decode import decode_image
from pipelines import storage
from pipelines.benchmarks.class_lists import LabelClass
from pipelines.benchmarks.dataset import BACKGROUND, Scene, SegmentationDataset
from pipelines.benchmarks.label_files import decode_labels

_NAME = re.compile(r"(?!.*\.(?:jpe?g|png)$)[^\s/\\]*", re.IGNORECASE)  # names without extension; may be empty
IGNORED = 255
ILLEGAL = -1


@dataclass(frozen=True, kw_only=True)
class FileDataset(SegmentationDataset):
    """Pairs of files in `uri`."""

    files: tuple[tuple[str, str], ...]
    """(image, label file) by position, as paths relative to `uri`."""
    label_of_value: tuple[int, ...]
    """For each of the 256 values of a label file: the class index, IGNORED or ILLEGAL."""

    def blocks(self, indexes: Sequence[int], block_size: int) -> list[tuple[int, ...]]:
        return [tuple(indexes[start : start + block_size]) for start in range(0, len(indexes), block_size)]

    def read(self, block: tuple[int, ...]) -> Iterator[Scene]:
        for index in block:
            image_file, label_file = self.files[index]
            image_uri, label_uri = storage.join(self.uri, image_file), storage.join(self.uri, label_file)
            content = storage.read_bytes(image_uri)
            try:
                image = decode_image(content)
            except ValueError as error:
                raise ValueError(f"{image_uri}: {error}") from error
            try:
                mask = self._labels(storage.read_bytes(label_uri))
                if mask.shape == image.shape[1::-1] != image.shape[:2]:
                    image = decode_image(content, upright=False)  # its labels were drawn on the unrotated image
                _check_sizes(mask, image)
            except ValueError as error:
                raise ValueError(f"{label_uri}: {error}") from error
            path = PurePosixPath(image_file)
            yield Scene(
                index=index, sample_id=path.stem, image=image, mask=mask, caption=path.name, part=self.benchmark
            )

    def _labels(self, content: bytes) -> NDArray[np.uint8]:
        values = decode_labels(content)
        labels = np.full(values.shape, ILLEGAL)
        known = values < len(self.label_of_value)
        labels[known] = np.array(self.label_of_value)[values[known]]
        if (labels == ILLEGAL).any():
            raise ValueError(
                f"holds the value {values[labels == ILLEGAL][0]}, which is not a class of {self.benchmark}"
            )
        return labels.astype(np.uint8)


def open_files(
    uri: str,
    benchmark: str,
    classes: Sequence[LabelClass],
    label_of_value: Mapping[int, int],
    files: Sequence[tuple[str, str]],
    *,
    official_counts: Sequence[int],
    page: str,
) -> FileDataset:
    """Returns the data set of these files after checking that all exist. Label values that are not given are illegal.

    Prints a notice to stderr if its size is not an official one. Raises ValueError if it is empty or files are
    missing.
    """
    if not files:
        raise ValueError(f"{uri} has no image of {benchmark}: get the data set from {page}")
    sizes = _sizes(uri, {str(PurePosixPath(file).parent) for pair in files for file in pair})
    for kind, names in (("images", [pair[0] for pair in files]), ("label files", [pair[1] for pair in files])):
        if missing := [name for name in names if name not in sizes]:
            raise ValueError(
                f"{uri} is half a data set: {len(missing):,} of {len(names):,} {kind} of {benchmark} are missing, "
                f"the first is {missing[0]}; get them from {page}"
            )
    if official_counts and len(files) not in official_counts:
        official = " or ".join(f"{count:,}" for count in official_counts)
        print(f"{benchmark}: {len(files):,} of the {official} images of the official list", file=sys.stderr)
    names = tuple(entry.name for entry in classes)
    return FileDataset(
        uri=uri,
        benchmark=benchmark,
        classes=names,
        words=tuple(entry.words for entry in classes if entry.name != BACKGROUND),
        colours=colours_of(classes),
        parts=(benchmark,),
        digest=digest_of(benchmark, names, [[(name, sizes[name]) for name in pair] for pair in files]),
        part_of_scene=(benchmark,) * len(files),
        official_counts=tuple(official_counts),
        files=tuple(files),
        label_of_value=tuple(label_of_value.get(value, ILLEGAL) for value in range(256)),
    )


def digest_of(benchmark: str, classes: tuple[str, ...], scenes: Iterable[object]) -> str:
    """Returns the hash of a benchmark's data. `scenes`: what tells the data of each, e.g. names and sizes of files."""
    digest = hashlib.sha256(repr((benchmark, classes)).encode())
    for scene in scenes:
        digest.update(repr(scene).encode())
    return digest.hexdigest()


def colours_of(classes: Sequence[LabelClass]) -> tuple[tuple[int, int, int], ...] | None:
    colours = tuple(entry.colour for entry in classes if entry.colour is not None)
    return colours if len(colours) == len(classes) else None


def find_folder(root: str, folders: Sequence[str], marker: str, *, benchmark: str, page: str) -> str:
    """Returns the first of `folders` in `root` with a file or folder `marker`. Raises ValueError if there is none."""
    root = storage.absolute(root)
    candidates = [storage.join(root, folder) if folder else root for folder in folders]
    for candidate in candidates:
        if storage.exists(storage.join(candidate, marker)):
            return candidate
    storage.check_bucket(root)
    looked_for = ", ".join(storage.join(candidate, marker) for candidate in candidates)
    raise ValueError(f"root={root} does not hold {benchmark}: none of {looked_for} exists; get it from {page}")


def read_names(uri: str) -> list[str]:
    """Reads the names in a list of images, one per line. Raises ValueError for an invalid or repeated name."""
    try:
        lines = storage.read_bytes(uri).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{uri} is not UTF-8 text ({error}): write the list again") from None
    names: list[str] = []
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"{uri}, line {number}: {name[:80]!r} is not a name of an image: give names without folder and ending"
            )
        names += [name] if name else []
    if repeated := next((name for name, count in Counter(names).items() if count > 1), None):
        raise ValueError(f"{uri} names {repeated} twice: write the list again")
    return names


def pair_by_name(
    uri: str,
    image_folder: str,
    label_folder: str,
    *,
    image_ending: str,
    label_ending: str,
    other_ending: str | None = None,
) -> list[tuple[str, str]]:
    """Pairs all images and label files that differ only in folder and ending, sorted by name.

    A name that only one folder contains is included, so that its other file is reported as missing. Label files with
    `other_ending` are ignored.
    """
    names: set[str] = set()
    for folder, ending in ((image_folder, image_ending), (label_folder, label_ending)):
        found = storage.list_sizes(storage.join(uri, folder))
        names |= {name.removesuffix(ending) for name in found if name.endswith(ending)}
    if other_ending is not None:
        names = {name for name in names if not f"{name}{label_ending}".endswith(other_ending)}
    return [(f"{image_folder}/{name}{image_ending}", f"{label_folder}/{name}{label_ending}") for name in sorted(names)]


def _sizes(uri: str, folders: set[str]) -> dict[str, int]:
    return {
        f"{folder}/{name}": size
        for folder in sorted(folders)
        for name, size in storage.list_sizes(storage.join(uri, folder)).items()
    }


def _check_sizes(mask: NDArray[np.uint8], image: NDArray[np.uint8]) -> None:
    (height, width), (image_height, image_width) = mask.shape, image.shape[:2]
    if (height, width) != (image_height, image_width):
        raise ValueError(f"{width}×{height} pixels, but its image has {image_width}×{image_height}: they must agree")
