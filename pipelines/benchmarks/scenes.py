"""Reads a scenes folder: images with masks and captions, as `groupvit demo-data` writes them.

    DIR/data/*.parquet   sample_id, image (JPEG or PNG), mask (grey PNG: class index, 255 = ignored), caption, part,
                         width, height
    DIR/scenes.json      written last: schema_version, classes (class 0 may be "background"), parts, counts, digest

The folder may be a local path or an s3:// URI.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import Field, with_config
from typing_extensions import TypedDict  # pydantic asks for it before Python 3.12

from groupvit.decode import decode_image
from groupvit.words import BACKGROUND
from pipelines import documents, storage
from pipelines.benchmarks.dataset import Scene, SegmentationDataset
from pipelines.benchmarks.label_files import decode_labels

SCHEMA_VERSION = 1
_FIX = "write the folder again"


@dataclass(frozen=True, kw_only=True)
class SceneBlock:
    """Some scenes of one row group, which a worker reads and scores at once."""

    file: str
    """Path of the file within the folder data/ of `SceneDataset.uri`."""
    row_group: int
    rows: tuple[int, ...]
    """Row numbers within the row group."""
    indexes: tuple[int, ...]
    """Positions of these rows in the data set."""


@with_config(documents.KEEP_OTHERS)
class ScenesDescription(TypedDict):
    """scenes.json"""

    schema_version: int
    classes: Annotated[list[str], Field(min_length=1, max_length=255)]
    parts: list[str]
    digest: str


@dataclass(frozen=True, kw_only=True)
class SceneDataset(SegmentationDataset):
    """A scenes folder."""

    row_groups: tuple[tuple[str, int, int], ...]
    """(file, row group, number of rows), in the order of positions."""

    def blocks(self, indexes: Sequence[int], block_size: int) -> list[SceneBlock]:
        blocks: list[SceneBlock] = []
        first, chosen = 0, set(indexes)
        for file, row_group, num_rows in self.row_groups:
            rows = [row for row in range(num_rows) if first + row in chosen]
            for start in range(0, len(rows), block_size):
                part = tuple(rows[start : start + block_size])
                positions = tuple(first + row for row in part)
                blocks.append(SceneBlock(file=file, row_group=row_group, rows=part, indexes=positions))
            first += num_rows
        return blocks

    def read(self, block: SceneBlock) -> Iterator[Scene]:
        columns = ["sample_id", "image", "mask", "caption", "part"]
        uri = storage.join(self.uri, "data", block.file)
        with storage.reporting_corruption(uri, _FIX), storage.open_parquet(uri) as file:
            table = storage.retry(lambda: file.read_row_group(block.row_group, columns=columns), uri)
        for index, row in zip(block.indexes, table.take(block.rows).to_pylist(), strict=True):
            try:
                yield self._decode(index, row)
            except ValueError as error:
                raise ValueError(f"scene {row['sample_id']} of {self.uri} cannot be used: {error}") from error

    def _decode(self, index: int, row: dict[str, Any]) -> Scene:
        image = decode_image(row["image"])
        try:
            mask = decode_labels(row["mask"])
        except ValueError as error:
            raise ValueError(f"its mask {error}") from error
        if mask.shape != image.shape[:2]:
            raise ValueError(f"its mask has the shape {mask.shape}, its image {image.shape[:2]}: they must agree")
        labels = np.unique(mask)
        if len(wrong := labels[(labels >= len(self.classes)) & (labels != 255)]):
            raise ValueError(f"its mask holds {wrong[0]}, but there are {len(self.classes)} classes")
        fields = {name: row[name] for name in ("sample_id", "caption", "part")}
        return Scene(index=index, image=image, mask=mask.astype(np.uint8), **fields)


def open_scenes(uri: str) -> SceneDataset:
    """Reads scenes.json and the parts of all scenes. Raises ValueError if this is not a complete scenes folder."""
    uri = storage.absolute(uri)
    try:
        description = documents.read(storage.join(uri, "scenes.json"), ScenesDescription, _FIX)
    except FileNotFoundError:
        storage.check_bucket(uri)
        raise ValueError(
            f"{uri} is not a scenes folder: it has no scenes.json; make one with `groupvit demo-data`"
        ) from None
    if description["schema_version"] > SCHEMA_VERSION:
        raise ValueError(
            f"{uri} has schema_version={description['schema_version']}, newer than {SCHEMA_VERSION}: upgrade groupvit"
        )
    part_of_scene: list[str] = []
    row_groups: list[tuple[str, int, int]] = []
    for name in storage.list_files(storage.join(uri, "data")):
        if not (name.endswith(".parquet") and storage.is_data(name)):
            continue
        place = storage.join(uri, "data", name)
        with storage.reporting_corruption(place, _FIX), storage.open_parquet(place) as parquet:
            part_of_scene += parquet.read(columns=["part"]).column("part").to_pylist()
            row_groups += [
                (name, group, parquet.metadata.row_group(group).num_rows) for group in range(parquet.num_row_groups)
            ]
    if not part_of_scene:
        raise ValueError(f"{uri} holds no scene")
    return SceneDataset(
        uri=uri,
        benchmark="scenes",
        classes=tuple(description["classes"]),
        words=tuple((name,) for name in description["classes"] if name != BACKGROUND),
        colours=None,
        parts=tuple(description["parts"]),
        digest=description["digest"],
        part_of_scene=tuple(part_of_scene),
        row_groups=tuple(row_groups),
    )
