"""ImageNet's validation images in folders and in Parquet files, made of real photos."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as fs
import pyarrow.parquet as pq
import pytest
from PIL import Image

from groupvit.decode import decode_image
from pipelines import storage
from pipelines.benchmarks.class_lists import read_imagenet_classes
from pipelines.benchmarks.imagenet import FILES_PER_BLOCK, ImageNetDataset, LabelledImage, open_imagenet
from tests.support.clutter import add_clutter
from tests.support.miniatures import Photo, write_imagenet, write_imagenet_parquet

NUM_IMAGES = 12


def images_of(dataset: ImageNetDataset) -> list[LabelledImage]:
    return [image for block in dataset.blocks() for image in dataset.read(block)]


def test_folders_and_parquet_files_hold_the_same(tmp_path: Path, photos: list[Photo]) -> None:
    folders = open_imagenet(str(write_imagenet(tmp_path / "folders", photos, NUM_IMAGES)))
    files = open_imagenet(str(write_imagenet_parquet(tmp_path / "files", photos, NUM_IMAGES)))
    assert folders.classes == files.classes == tuple(name for _, name in read_imagenet_classes())
    assert folders.classes[0] == "tench" and len(folders.classes) == 1000
    assert folders.labels == files.labels and len(set(folders.labels)) > 3
    assert len(files.blocks()) > 2
    for dataset in (folders, files):
        assert [image.index for image in images_of(dataset)] == list(range(NUM_IMAGES))
        assert tuple(image.label for image in images_of(dataset)) == dataset.labels
    for one, other in zip(images_of(folders), images_of(files), strict=True):
        np.testing.assert_array_equal(one.image, other.image)
    for image in images_of(folders):
        folder = read_imagenet_classes()[image.label][0]
        file = sorted((tmp_path / "folders/val").rglob("*.JPEG"))[image.index]
        assert file.parent.name == folder
        np.testing.assert_array_equal(image.image, decode_image(file.read_bytes()))


@pytest.mark.parametrize("inner", ["val", "ILSVRC/Data/CLS-LOC/val", "."])
def test_folders_may_lie_at_several_depths(inner: str, tmp_path: Path, photos: list[Photo]) -> None:
    write_imagenet(tmp_path / "written", photos, 4)
    (tmp_path / "root" / inner).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "written/val").rename(tmp_path / "root" / inner)
    (tmp_path / "root/train/n01440764").mkdir(parents=True, exist_ok=True) if inner != "." else None
    assert len(images_of(open_imagenet(str(tmp_path / "root")))) == 4


def test_many_files_come_in_several_blocks(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (2, 2)).save(file, format="PNG")
    (tmp_path / "n01440764").mkdir()
    for number in range(FILES_PER_BLOCK + 3):
        (tmp_path / "n01440764" / f"{number:05d}.png").write_bytes(file.getvalue())
    dataset = open_imagenet(str(tmp_path))
    assert [len(block) for block in dataset.blocks()] == [FILES_PER_BLOCK, 3]
    assert [image.index for image in images_of(dataset)] == list(range(FILES_PER_BLOCK + 3))


def test_images_may_be_plain_bytes_and_other_splits_are_left_out(tmp_path: Path, photos: list[Photo]) -> None:
    rows = {"image": [photo.jpeg for photo in photos], "label": [5, 6, 7]}
    pq.write_table(pa.table(rows), tmp_path / "validation-00000-of-00001.parquet")
    pq.write_table(pa.table(rows | {"label": [-1, -1, -1]}), tmp_path / "test-00000-of-00001.parquet")
    dataset = open_imagenet(str(tmp_path))
    assert dataset.labels == (5, 6, 7)
    assert [image.image.shape for image in images_of(dataset)] == [(*photo.values.shape, 3) for photo in photos]


def test_the_same_from_object_storage(bucket: str, tmp_path: Path, photos: list[Photo]) -> None:
    filesystem, path = storage.resolve(bucket)
    for name, write in (("folders", write_imagenet), ("files", write_imagenet_parquet)):
        root = write(tmp_path / name, photos, NUM_IMAGES)
        fs.copy_files(str(root), f"{path}/{name}", destination_filesystem=filesystem)
        local, remote = open_imagenet(str(root)), open_imagenet(f"{bucket}/{name}")
        assert remote.digest == local.digest and remote.uri.startswith("s3://")
        for one, other in zip(images_of(local), images_of(remote), strict=True):
            assert one.label == other.label
            np.testing.assert_array_equal(one.image, other.image)
    with pytest.raises(storage.StorageError, match="no bucket"):
        open_imagenet("s3://no-such-bucket-here/imagenet")


def test_a_miniature_is_noted_and_the_digest_tells_of_other_files(
    tmp_path: Path, photos: list[Photo], capsys: pytest.CaptureFixture[str]
) -> None:
    first = open_imagenet(str(write_imagenet(tmp_path / "a", photos, 6)))
    assert capsys.readouterr().err == "imagenet: 6 of the 50,000 images of the official list\n"
    assert first.digest == open_imagenet(str(write_imagenet(tmp_path / "b", photos, 6))).digest
    assert first.digest != open_imagenet(str(write_imagenet(tmp_path / "c", photos, 5))).digest


def test_a_wrong_root_is_answered_with_what_was_looked_for(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ValueError, match=r"val/n01440764/\*\.JPEG.*parquet; get them from https"):
            open_imagenet(str(root))
    (tmp_path / "val/n01440764").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds no image of ImageNet"):
        open_imagenet(str(tmp_path))


def test_unknown_folders_and_loose_images_are_refused(tmp_path: Path, photos: list[Photo]) -> None:
    root = write_imagenet(tmp_path, photos, 4)
    (root / "val/n00000000").mkdir()
    with pytest.raises(ValueError, match="folder n00000000, which is none of"):
        open_imagenet(str(root))
    (root / "val/n00000000").rmdir()
    (root / "val/ILSVRC2012_val_00000001.JPEG").write_bytes(photos[0].jpeg)
    with pytest.raises(ValueError, match="images beside the folders of classes"):
        open_imagenet(str(root))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": [b"x"], "label": [1000]}, "has the label 1000, which is none of the 1,000 classes"),
        ({"image": [b"x"], "label": [-1]}, "has the label -1"),
        ({"image": [b"x"], "label": ["tench"]}, "has the label tench"),
        ({"image": [b"x"], "label": pa.array([None], pa.int64())}, "has the label None"),
        ({"image": ["x"], "label": [1]}, "no columns image"),
        ({"image": [{"path": "x"}], "label": [1]}, "no columns image"),
        ({"image": [b"x"]}, "no columns image"),
    ],
)
def test_unfit_parquet_files_are_refused(columns: dict[str, Any], message: str, tmp_path: Path) -> None:
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=message) as caught:
        open_imagenet(str(tmp_path))
    assert str(tmp_path / "x.parquet") in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_parquet_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"no parquet file")
    with pytest.raises(ValueError, match=r"x\.parquet: is corrupted or incomplete"):
        open_imagenet(str(tmp_path))


def test_damaged_images_are_named_when_read(tmp_path: Path, photos: list[Photo]) -> None:
    root = write_imagenet(tmp_path / "folders", photos, 2)
    file = sorted(root.rglob("*.JPEG"))[1]
    file.write_bytes(file.read_bytes()[:900])
    with pytest.raises(ValueError, match="cannot be decoded") as caught:
        images_of(open_imagenet(str(root)))
    assert str(caught.value).startswith(f"{file}: ")
    pq.write_table(pa.table({"image": pa.array([photos[0].jpeg, None]), "label": [1, 2]}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"row 1 of .*x\.parquet: .*cannot be decoded"):
        images_of(open_imagenet(str(tmp_path)))


def test_files_that_are_no_data_are_skipped(tmp_path: Path, photos: list[Photo]) -> None:
    for name, write in (("folders", write_imagenet), ("files", write_imagenet_parquet)):
        root = write(tmp_path / name, photos, 4)
        whole = open_imagenet(str(root))
        add_clutter(root)
        assert open_imagenet(str(root)) == whole
