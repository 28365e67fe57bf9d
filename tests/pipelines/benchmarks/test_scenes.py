"""Reading scenes folders, whole and damaged."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.benchmarks.dataset import Scene
from pipelines.benchmarks.scenes import open_scenes
from tests.support.clutter import add_clutter
from tests.support.image_files import png, write_png
from tests.support.scenes_folder import write_scenes


def test_every_scene_is_read_once_in_order(tmp_path: Path) -> None:
    dataset = open_scenes(str(write_scenes(tmp_path / "scenes", 17)))
    assert dataset.has_background and dataset.parts == ("seen", "unseen") and len(dataset.part_of_scene) == 17
    scenes = [scene for block in dataset.blocks(range(17), 3) for scene in dataset.read(block)]
    assert [scene.index for scene in scenes] == list(range(17))
    assert [scene.part for scene in scenes] == list(dataset.part_of_scene)
    for scene in scenes:
        assert scene.image.shape == (*scene.mask.shape, 3) and scene.mask.dtype == np.uint8
        label = int(scene.mask[scene.mask < 255].max())
        assert dataset.classes[label] in scene.caption


def test_blocks_hold_the_chosen_scenes_only(tmp_path: Path) -> None:
    dataset = open_scenes(str(write_scenes(tmp_path / "scenes", 17)))
    blocks = dataset.blocks([0, 7, 9, 16], 2)
    assert [index for block in blocks for index in block.indexes] == [0, 7, 9, 16]
    assert [scene.index for block in blocks for scene in dataset.read(block)] == [0, 7, 9, 16]
    assert max(len(block.rows) for block in blocks) <= 2


def test_a_folder_without_its_last_file_is_refused(tmp_path: Path) -> None:
    folder = write_scenes(tmp_path / "scenes", 4)
    (folder / "scenes.json").unlink()
    with pytest.raises(ValueError, match=r"has no scenes\.json"):
        open_scenes(str(folder))
    with pytest.raises(ValueError, match="not a scenes folder"):
        open_scenes(str(tmp_path / "missing"))


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    folder = write_scenes(tmp_path / "scenes", 4)
    description = json.loads((folder / "scenes.json").read_text()) | {"schema_version": 2}
    (folder / "scenes.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match="schema_version=2"):
        open_scenes(str(folder))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("image", b"no image", "cannot be decoded"),
        ("mask", b"no image", "its mask cannot be decoded as an image"),
        ("mask", png(np.zeros((3, 3), np.uint8)), "shape"),
        ("mask", png(np.zeros((3, 3, 3), np.uint8)), "RGB"),
    ],
)
def test_damaged_scenes_are_named(tmp_path: Path, column: str, value: bytes, message: str) -> None:
    folder = write_scenes(tmp_path / "scenes", 4)
    file = folder / "data" / "00000.parquet"
    rows = pq.read_table(file).to_pylist()
    rows[1][column] = value
    pq.write_table(pa.Table.from_pylist(rows), file)
    dataset = open_scenes(str(folder))
    with pytest.raises(ValueError, match=message) as caught:
        list(dataset.read(dataset.blocks([1], 1)[0]))
    assert rows[1]["sample_id"] in str(caught.value)


@pytest.mark.parametrize("first", [0, 100])
def test_a_damaged_file_is_named(tmp_path: Path, first: int) -> None:
    file = write_scenes(tmp_path / "scenes", 4) / "data" / "00000.parquet"
    content = file.read_bytes()
    file.write_bytes(content[:first] + bytes(200))
    with pytest.raises(ValueError, match=r"00000\.parquet: is corrupted or incomplete") as caught:
        open_scenes(str(tmp_path / "scenes"))
    assert "\n" not in str(caught.value)
    file.write_bytes(content)
    dataset = open_scenes(str(tmp_path / "scenes"))
    file.unlink()
    with pytest.raises(ValueError, match=r"00000\.parquet: is missing; write the folder again"):
        list(dataset.read(dataset.blocks([1], 1)[0]))


def test_a_label_beyond_the_classes_is_refused(tmp_path: Path) -> None:
    folder = write_scenes(tmp_path / "scenes", 4)
    description = json.loads((folder / "scenes.json").read_text()) | {"classes": ["background"]}
    (folder / "scenes.json").write_text(json.dumps(description))
    dataset = open_scenes(str(folder))
    with pytest.raises(ValueError, match="there are 1 classes"):
        list(dataset.read(dataset.blocks([0], 1)[0]))


def test_files_that_are_no_data_are_skipped(tmp_path: Path) -> None:
    folder = write_scenes(tmp_path / "scenes", 4)
    whole = open_scenes(str(folder))
    add_clutter(folder)
    assert open_scenes(str(folder)) == whole


def test_masks_of_few_bits_hold_the_same_labels(tmp_path: Path) -> None:
    folder = write_scenes(tmp_path / "scenes", 4)
    expected = [scene.mask for scene in scenes_of(folder)]
    file = folder / "data" / "00000.parquet"
    rows = pq.read_table(file).to_pylist()
    for row, mask in zip(rows, expected, strict=False):
        row["mask"] = write_png(np.where(mask == 255, 0, mask), bits=2)
    pq.write_table(pa.Table.from_pylist(rows), file)
    for scene, mask in zip(scenes_of(folder)[: len(rows)], expected, strict=False):
        np.testing.assert_array_equal(scene.mask, np.where(mask == 255, 0, mask))


def scenes_of(folder: Path) -> list[Scene]:
    dataset = open_scenes(str(folder))
    return [scene for block in dataset.blocks(range(4), 3) for scene in dataset.read(block)]
