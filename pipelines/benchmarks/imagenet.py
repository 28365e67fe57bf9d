"""ImageNet's validation images, for zero-shot classification: in folders, or in Parquet files.

    DIR/val/n01440764/*.JPEG          as commonly unpacked: a folder per class; also DIR/ILSVRC/Data/CLS-LOC/val, or DIR
    DIR/data/validation-*.parquet     as on Hugging Face: columns image (bytes, or struct with bytes) and label (0 to
                                      999); also DIR/*.parquet; other names are read if none begins with "val"

The folder may be a local path or an s3:// URI. Class names are CLIP's curated ones.
"""

import hashlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from groupvit.decode import decode_image
from pipelines import storage
from pipelines.benchmarks.class_lists import read_imagenet_classes

PAGE = "https://image-net.org/challenges/LSVRC/2012/"
NUM_IMAGES = 50_000
NUM_CLASSES = 1000
FOLDERS = ("val", "ILSVRC/Data/CLS-LOC/val", "")
ENDINGS = (".jpeg", ".jpg", ".png")
FILES_PER_BLOCK = 256
_FIX = "get it again"


@dataclass(frozen=True, kw_only=True)
class LabelledImage:
    """One image with its class."""

    index: int
    """Position in the data set."""
    image: NDArray[np.uint8]
    """RGB [H, W, 3]."""
    label: int


@dataclass(frozen=True, kw_only=True)
class ImageNetDataset(ABC):
    """What is known without reading an image. Workers get copies of it."""

    uri: str
    classes: tuple[str, ...]
    """The 1,000 class names, by label."""
    labels: tuple[int, ...]
    """Label of each image, by position."""
    digest: str
    """Hash of the data to classify. Equal digests mean equal data."""

    @abstractmethod
    def blocks(self) -> list[Any]:
        """Splits the images, in order, into parts, each for `read`."""

    @abstractmethod
    def read(self, block: Any) -> Iterator[LabelledImage]:
        """Decodes the images of a block. Raises ValueError, with the image, for a corrupted one."""


@dataclass(frozen=True, kw_only=True)
class FolderImageNet(ImageNetDataset):
    """ImageNet with one folder per class."""

    files: tuple[str, ...]
    """Paths relative to `uri`, by position."""

    def blocks(self) -> list[range]:
        count = len(self.files)
        return [range(start, min(start + FILES_PER_BLOCK, count)) for start in range(0, count, FILES_PER_BLOCK)]

    def read(self, block: range) -> Iterator[LabelledImage]:
        for index in block:
            uri = storage.join(self.uri, self.files[index])
            yield _labelled(index, storage.read_bytes(uri), self.labels[index], uri)


@dataclass(frozen=True, kw_only=True)
class RowGroup:
    """A row group of a Parquet file, which a worker reads at once."""

    file: str
    """Path relative to `ParquetImageNet.uri`."""
    number: int
    first: int
    """Position of its first row in the data set."""


@dataclass(frozen=True, kw_only=True)
class ParquetImageNet(ImageNetDataset):
    """ImageNet in Parquet files."""

    row_groups: tuple[RowGroup, ...]

    def blocks(self) -> list[RowGroup]:
        return list(self.row_groups)

    def read(self, block: RowGroup) -> Iterator[LabelledImage]:
        uri = storage.join(self.uri, block.file)
        with storage.reporting_corruption(uri, _FIX), storage.open_parquet(uri) as file:
            column = storage.retry(lambda: file.read_row_group(block.number, columns=["image"]), uri).column("image")
        for index, cell in enumerate(column, start=block.first):
            value = cell.as_py()
            content = value["bytes"] if isinstance(value, dict) else value
            yield _labelled(index, content or b"", self.labels[index], f"row {index - block.first} of {uri}")


def open_imagenet(root: str) -> ImageNetDataset:
    """Opens the validation images in `root`. Raises ValueError if there are none, or if labels are not of the 1,000
    classes.

    Prints a notice to stderr if there are not the official 50,000 images.
    """
    root = storage.absolute(root)
    dataset = _open_folders(root) or _open_parquet(root)
    if dataset is None:
        storage.check_bucket(root)
        raise ValueError(
            f"root={root} does not hold ImageNet's validation images: neither val/n01440764/*.JPEG, a folder for each "
            f"class, nor data/validation-*.parquet; get them from {PAGE}"
        )
    if not dataset.labels:
        raise ValueError(f"{dataset.uri} holds no image of ImageNet: get them from {PAGE}")
    if len(dataset.labels) != NUM_IMAGES:
        print(f"imagenet: {len(dataset.labels):,} of the {NUM_IMAGES:,} images of the official list", file=sys.stderr)
    return dataset


def _open_folders(root: str) -> FolderImageNet | None:
    classes = read_imagenet_classes()
    label_of_folder = {folder: label for label, (folder, _) in enumerate(classes)}
    for candidate in FOLDERS:
        uri = storage.join(root, candidate) if candidate else root
        folders = storage.list_folders(uri)
        if not any(folder in label_of_folder for folder in folders):
            continue
        if unknown := [folder for folder in folders if folder not in label_of_folder]:
            raise ValueError(f"{uri} has a folder {unknown[0]}, which is none of ImageNet's 1,000 classes: remove it")
        found = [(name, size) for name, size in storage.list_sizes(uri).items() if name.lower().endswith(ENDINGS)]
        labels = tuple(label_of_folder[name.partition("/")[0]] for name, _ in found if "/" in name)
        if len(labels) < len(found):
            raise ValueError(f"{uri} has images beside the folders of classes: sort them into folders")
        return FolderImageNet(
            uri=uri,
            classes=tuple(name for _, name in classes),
            labels=labels,
            digest=_digest(found, labels),
            files=tuple(name for name, _ in found),
        )
    return None


def _open_parquet(root: str) -> ParquetImageNet | None:
    for uri in (root, storage.join(root, "data")):
        names = [name for name in storage.list_files(uri) if name.endswith(".parquet") and storage.is_data(name)]
        if not names:
            continue
        labels: list[int] = []
        row_groups: list[RowGroup] = []
        sizes: list[tuple[str, int]] = []
        for name in [name for name in names if name.startswith("val")] or names:
            first = len(labels)
            file_labels, groups = _read_labels(storage.join(uri, name))
            labels += file_labels
            for number, (num_rows, num_bytes) in enumerate(groups):
                row_groups.append(RowGroup(file=name, number=number, first=first))
                sizes.append((name, num_bytes))
                first += num_rows
        return ParquetImageNet(
            uri=uri,
            classes=tuple(name for _, name in read_imagenet_classes()),
            labels=tuple(labels),
            digest=_digest(sizes, labels),
            row_groups=tuple(row_groups),
        )
    return None


def _read_labels(uri: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Reads the labels, and (rows, bytes) of each row group. Raises ValueError if the file is of another kind."""
    with storage.reporting_corruption(uri, _FIX):
        file = storage.open_parquet(uri)
    with file:
        schema = file.schema_arrow
        if not {"image", "label"} <= set(schema.names) or not _holds_bytes(schema.field("image").type):
            raise ValueError(f"{uri} has no columns image (bytes) and label: give ImageNet's validation files")
        with storage.reporting_corruption(uri, _FIX):
            labels = storage.retry(lambda: file.read(columns=["label"]), uri).column("label").to_pylist()
            groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
    if wrong := [label for label in labels if not isinstance(label, int) or not 0 <= label < NUM_CLASSES]:
        raise ValueError(
            f"{uri} has the label {wrong[0]}, which is none of the {NUM_CLASSES:,} classes: give the validation split "
            "(the test split has no labels)"
        )
    return labels, [(group.num_rows, group.total_byte_size) for group in groups]


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _holds_bytes(kind.field(index).type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _digest(files: list[tuple[str, int]], labels: Any) -> str:
    return hashlib.sha256(repr((files, list(labels))).encode()).hexdigest()


def _labelled(index: int, content: bytes, label: int, where: str) -> LabelledImage:
    try:
        return LabelledImage(index=index, image=decode_image(content), label=label)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
