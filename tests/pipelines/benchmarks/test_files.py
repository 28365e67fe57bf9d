"""Every benchmark in its official layout, in miniature; and what is said of folders that are not one."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.fs as fs
import pytest
from PIL import Image

from pipelines import storage
from pipelines.benchmarks.catalogue import BENCHMARKS
from pipelines.benchmarks.dataset import Scene, SegmentationDataset
from tests.support.clutter import add_clutter
from tests.support.image_files import encoded, png, write_png
from tests.support.miniatures import (
    Photo,
    write_ade20k,
    write_cityscapes,
    write_coco,
    write_context,
    write_voc,
)

WRITERS: dict[str, Callable[[Path, list[Photo]], Path]] = {
    "voc21": write_voc,
    "voc20": write_voc,
    "context60": write_context,
    "context59": write_context,
    "coco-object": write_coco,
    "coco-stuff": write_coco,
    "cityscapes": write_cityscapes,
    "ade20k": write_ade20k,
}
NUM_CLASSES = {"voc21": 21, "voc20": 20, "context60": 60, "context59": 59, "coco-object": 81, "coco-stuff": 171}
NUM_CLASSES |= {"cityscapes": 19, "ade20k": 150}
VOC = {5: "bottle", 6: "bus", 7: "car", 9: "chair", 15: "person", 18: "sofa"}
"""The classes in the three photos."""
RAW = {
    "voc21": VOC | {0: "background", 255: None},
    "voc20": VOC | {0: None, 255: None},
    "context60": {0: "background", 10: "bottle", 12: "bus", 14: "car", 17: "chair", 37: "person", 49: "sofa"},
    "context59": {0: None, 10: "bottle", 12: "bus", 14: "car", 17: "chair", 37: "person", 49: "sofa"},
    "coco-object": {43: "bottle", 5: "bus", 2: "car", 61: "chair", 0: "person", 62: "couch"}
    | dict.fromkeys((172, 123, 255), "background"),
    "coco-stuff": {43: "bottle", 5: "bus", 2: "car", 61: "chair", 0: "person", 62: "couch"}
    | {172: "wall-other", 123: "grass", 255: None},
    "cityscapes": {11: "building", 17: "pole", 28: "bus", 26: "car", 24: "person", 7: "road"}
    | dict.fromkeys((0, 3, 4)),
    "ade20k": {1: "wall", 0: None, 99: "bottle", 81: "bus", 21: "car", 20: "chair", 13: "person", 24: "sofa"},
}
"""What a value of the label files means; None: ignored."""


def scenes_of(dataset: SegmentationDataset) -> list[Scene]:
    blocks = dataset.blocks(range(len(dataset.part_of_scene)), 2)
    return [scene for block in blocks for scene in dataset.read(block)]


def label_files(root: Path) -> list[Path]:
    folders = ("SegmentationClass", "SegmentationClassContext", "annotations", "gtFine")
    return sorted(file for file in root.rglob("*.png") if any(name in file.parts for name in folders))


@pytest.mark.parametrize("benchmark", list(WRITERS))
def test_every_pixel_has_the_class_that_its_value_means(benchmark: str, tmp_path: Path, photos: list[Photo]) -> None:
    root = WRITERS[benchmark](tmp_path, photos)
    dataset = BENCHMARKS[benchmark](str(root))
    scenes = scenes_of(dataset)
    assert dataset.benchmark == benchmark and len(dataset.classes) == NUM_CLASSES[benchmark]
    assert dataset.has_background == (benchmark in ("voc21", "context60", "coco-object"))
    assert len(dataset.words) == len(dataset.classes) - dataset.has_background
    assert dataset.colours is None or len(dataset.colours) == len(dataset.classes)
    assert dataset.parts == (dataset.benchmark,) and dataset.part_of_scene == dataset.parts * 3
    assert [scene.index for scene in scenes] == [0, 1, 2]
    seen: set[str | None] = set()
    for scene, file in zip(scenes, label_files(root), strict=True):
        with Image.open(file) as opened:
            values = np.array(opened)
        names = np.array([*dataset.classes, *[None] * (256 - len(dataset.classes))], dtype=object)[scene.mask]
        np.testing.assert_array_equal(names, np.array([RAW[benchmark].get(value) for value in range(256)])[values])
        assert scene.image.shape == (*scene.mask.shape, 3) and scene.part == dataset.benchmark
        assert scene.sample_id in file.name or scene.sample_id.removesuffix("_leftImg8bit") in file.name
        seen |= {RAW[benchmark][value] for value in np.unique(values).tolist()}
    assert len(seen) >= 5


@pytest.mark.parametrize("benchmark", list(WRITERS))
def test_the_folder_may_be_given_at_any_depth(benchmark: str, tmp_path: Path, photos: list[Photo]) -> None:
    root = WRITERS[benchmark](tmp_path / "root", photos)
    whole = BENCHMARKS[benchmark](str(root))
    inner = Path(whole.uri)
    while inner != root:
        assert BENCHMARKS[benchmark](str(inner)) == whole
        inner = inner.parent
    if benchmark.startswith(("coco", "cityscapes")):
        folder = {"coco-object": "coco", "coco-stuff": "coco_stuff164k", "cityscapes": "cityscapes"}[benchmark]
        (tmp_path / "outer").mkdir()
        root.rename(tmp_path / "outer" / folder)
        assert BENCHMARKS[benchmark](str(tmp_path / "outer")).files == whole.files  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("benchmark", "old", "new"),
    [
        ("coco-object", ".png", "_instanceTrainIds.png"),
        ("coco-stuff", ".png", "_labelTrainIds.png"),
        ("cityscapes", "_labelIds.png", "_labelTrainIds.png"),
    ],
)
def test_made_label_files_give_the_same_masks(
    benchmark: str, old: str, new: str, tmp_path: Path, photos: list[Photo]
) -> None:
    root = WRITERS[benchmark](tmp_path, photos)
    dataset = BENCHMARKS[benchmark](str(root))
    raw = scenes_of(dataset)
    for scene, file in zip(
        raw, label_files(root), strict=True
    ):  # as the converters of others leave them: beside the raw
        file.with_name(file.name.removesuffix(old) + new).write_bytes(png(scene.mask))
    made = BENCHMARKS[benchmark](str(root))
    assert made.digest != dataset.digest
    for one, other in zip(raw, scenes_of(made), strict=True):
        np.testing.assert_array_equal(one.mask, other.mask)
        np.testing.assert_array_equal(one.image, other.image)


def test_files_made_for_the_other_coco_benchmark_are_left_alone(tmp_path: Path, photos: list[Photo]) -> None:
    root = write_coco(tmp_path, photos)
    expected = BENCHMARKS["coco-object"](str(root))
    for file in label_files(root):
        file.with_name(f"{file.stem}_labelTrainIds.png").write_bytes(png(np.full((200, 240), 7, np.uint8)))
    assert BENCHMARKS["coco-object"](str(root)) == expected


def test_coco_leaves_no_pixel_of_a_removed_category(tmp_path: Path, photos: list[Photo]) -> None:
    root = write_coco(tmp_path, photos)
    label_files(root)[1].write_bytes(png(np.full((200, 240), 25, np.uint8)))  # a hat, which COCO dropped
    for benchmark in ("coco-object", "coco-stuff"):
        with pytest.raises(ValueError, match=f"holds the value 25, which is not a class of {benchmark}"):
            scenes_of(BENCHMARKS[benchmark](str(root)))


def test_the_same_from_object_storage(bucket: str, tmp_path: Path, photos: list[Photo]) -> None:
    for name, write in (("voc21", write_voc), ("cityscapes", write_cityscapes)):
        root = write(tmp_path / name, photos)
        fs.copy_files(
            str(root), storage.resolve(bucket)[1] + f"/{name}", destination_filesystem=storage.resolve(bucket)[0]
        )
        local, remote = BENCHMARKS[name](str(root)), BENCHMARKS[name](f"{bucket}/{name}")
        assert remote.digest == local.digest and remote.uri.startswith("s3://")
        for one, other in zip(scenes_of(local), scenes_of(remote), strict=True):
            np.testing.assert_array_equal(one.mask, other.mask)
            np.testing.assert_array_equal(one.image, other.image)
    with pytest.raises(ValueError, match=r"none of s3://.*val\.txt"):
        BENCHMARKS["voc21"](f"{bucket}/cityscapes")
    with pytest.raises(storage.StorageError, match="no bucket"):
        BENCHMARKS["voc21"]("s3://no-such-bucket-here/voc")


def test_blocks_hold_the_chosen_scenes_only(tmp_path: Path, photos: list[Photo]) -> None:
    dataset = BENCHMARKS["voc21"](str(write_voc(tmp_path, photos)))
    assert [scene.index for block in dataset.blocks([0, 2], 1) for scene in dataset.read(block)] == [0, 2]
    assert [len(block) for block in dataset.blocks([0, 1, 2], 2)] == [2, 1]


def test_the_digest_tells_of_other_files(tmp_path: Path, photos: list[Photo]) -> None:
    dataset = BENCHMARKS["voc21"](str(write_voc(tmp_path / "a", photos)))
    assert dataset.digest == BENCHMARKS["voc21"](str(write_voc(tmp_path / "b", photos))).digest
    assert dataset.digest != BENCHMARKS["voc20"](str(tmp_path / "a")).digest
    assert dataset.digest != BENCHMARKS["voc21"](str(write_voc(tmp_path / "c", photos[:2]))).digest
    with label_files(tmp_path / "b")[0].open("ab") as file:
        file.write(b" ")
    assert dataset.digest != BENCHMARKS["voc21"](str(tmp_path / "b")).digest


@pytest.mark.parametrize("benchmark", list(WRITERS))
def test_a_wrong_root_is_answered_with_what_was_looked_for(benchmark: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"root=.* does not hold .*; get it from http") as caught:
        BENCHMARKS[benchmark](str(tmp_path))
    assert str(tmp_path / "") in str(caught.value) and "\n" not in str(caught.value)
    if benchmark == "voc21":
        assert str(tmp_path / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt") in str(caught.value)


@pytest.mark.parametrize("benchmark", list(WRITERS))
def test_half_a_data_set_is_refused_before_anything_is_read(
    benchmark: str, tmp_path: Path, photos: list[Photo]
) -> None:
    root = WRITERS[benchmark](tmp_path, photos)
    for file in label_files(root)[1:]:
        file.unlink()
    gone = label_files(root)[0].parent.name if benchmark != "cityscapes" else "lindau"
    with pytest.raises(ValueError, match=f"2 of 3 label files of {benchmark} are missing, the first is .*{gone}/"):
        BENCHMARKS[benchmark](str(root))


def test_missing_images_are_noticed_too(tmp_path: Path, photos: list[Photo]) -> None:
    for name, write in (("voc21", write_voc), ("ade20k", write_ade20k)):
        root = write(tmp_path / name, photos)
        next(root.rglob("*.jpg")).unlink()
        with pytest.raises(ValueError, match=f"1 of 3 images of {name} are missing"):
            BENCHMARKS[name](str(root))


@pytest.mark.parametrize("benchmark", list(WRITERS))
def test_files_that_are_no_data_are_skipped(benchmark: str, tmp_path: Path, photos: list[Photo]) -> None:
    root = WRITERS[benchmark](tmp_path, photos)
    whole = BENCHMARKS[benchmark](str(root))
    add_clutter(root)
    assert BENCHMARKS[benchmark](str(root)) == whole


@pytest.mark.parametrize("written", ["\ufeff{}\n{}\n", "{}\r\n{}\r\n", "\n  {}\n\n{}", "{}\n{}\n\n"])
def test_a_list_may_be_written_by_any_editor(written: str, tmp_path: Path, photos: list[Photo]) -> None:
    root = write_voc(tmp_path, photos)
    text = written.format("2011_000003", "2011_000006")
    (root / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt").write_bytes(text.encode())
    assert [scene.sample_id for scene in scenes_of(BENCHMARKS["voc21"](str(root)))] == ["2011_000003", "2011_000006"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"2011_000003\n2011_000006 1\n", r"val\.txt, line 2: '2011_000006 1' is not a name of an image"),
        (b"2011_000003.jpg\n", r"line 1: '2011_000003\.jpg' is not a name of an image: give names without folder"),
        (b"/JPEGImages/2011_000003.jpg /SegmentationClassAug/2011_000003.png\n", r"line 1: '/JPEGImages/"),
        ("2011_000003\n".encode("utf-16"), r"val\.txt is not UTF-8 text"),
    ],
    ids=["flags", "ending", "pairs", "utf-16"],
)
def test_a_list_of_something_else_is_refused(content: bytes, message: str, tmp_path: Path, photos: list[Photo]) -> None:
    root = write_voc(tmp_path, photos)
    (root / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        BENCHMARKS["voc21"](str(root))
    assert "\n" not in str(caught.value)


def test_an_empty_or_repeating_list_is_refused(tmp_path: Path, photos: list[Photo]) -> None:
    root = write_voc(tmp_path, photos)
    names = root / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt"
    names.write_text("2011_000003\n2011_000006\n2011_000003\n")
    with pytest.raises(ValueError, match="names 2011_000003 twice"):
        BENCHMARKS["voc21"](str(root))
    names.write_text("\n")
    with pytest.raises(ValueError, match="has no image of voc21: get the data set from http"):
        BENCHMARKS["voc21"](str(root))


@pytest.mark.parametrize("benchmark", list(WRITERS))
def test_a_miniature_is_noted_and_no_error(
    benchmark: str, tmp_path: Path, photos: list[Photo], capsys: pytest.CaptureFixture[str]
) -> None:
    BENCHMARKS[benchmark](str(WRITERS[benchmark](tmp_path, photos)))
    written = capsys.readouterr()
    assert written.err.startswith(f"{benchmark}: 3 of the ") and written.err.count("\n") == 1 and not written.out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (png(np.full((338, 500), 21, np.uint8)), "holds the value 21, which is not a class of voc21"),
        (png(np.zeros((10, 500), np.uint8)), "500×10 pixels, but its image has 500×338"),
        (png(np.zeros((338, 500, 3), np.uint8)), "mode RGB"),
        (png(np.full((338, 500), 300, np.uint16)), "holds the value 300, which is not a class of voc21"),
        (encoded(Image.new("L", (500, 338)), "JPEG"), "is a JPEG file: a PNG of labels is expected"),
        (encoded(Image.new("L", (9000, 9000)), "PNG"), "has 9000×9000 pixels, more than"),
        (encoded(Image.new("L", (14000, 14000)), "PNG"), "cannot be decoded as an image"),
        (b"no image", "cannot be decoded as an image"),
        (b"", "cannot be decoded as an image"),
        (png(np.random.default_rng(0).integers(0, 20, (338, 500), np.uint8))[:2000], "cannot be decoded as an image"),
    ],
    ids=["value", "size", "rgb", "16 bits", "jpeg", "large", "bomb", "text", "empty", "truncated"],
)
def test_unfit_labels_are_named_when_read(content: bytes, message: str, tmp_path: Path, photos: list[Photo]) -> None:
    root = write_voc(tmp_path, photos)
    file = root / "VOCdevkit/VOC2012/SegmentationClass/2011_000003.png"
    file.write_bytes(content)
    dataset = BENCHMARKS["voc21"](str(root))
    assert [scene.index for scene in dataset.read((1, 2))] == [1, 2]
    with pytest.raises(ValueError, match=message) as caught:
        list(dataset.read((0,)))
    assert str(caught.value).startswith(f"{file}: ") and "\n" not in str(caught.value)


def test_an_unreadable_image_is_named_when_read(tmp_path: Path, photos: list[Photo]) -> None:
    root = write_voc(tmp_path, photos)
    file = root / "VOCdevkit/VOC2012/JPEGImages/2011_000006.jpg"
    file.write_bytes(photos[1].jpeg[:5000])
    dataset = BENCHMARKS["voc21"](str(root))
    with pytest.raises(ValueError, match="cannot be decoded") as caught:
        list(dataset.read((1,)))
    assert str(caught.value).startswith(f"{file}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(("bits", "values"), [(1, (0, 1)), (2, (0, 1, 2, 3)), (4, (0, 1, 5, 15)), (16, (0, 9, 150))])
def test_labels_of_any_depth_mean_the_same_classes(bits: int, values: tuple[int, ...], tmp_path: Path) -> None:
    raw = np.array(values).repeat(16)[None].repeat(48, axis=0)
    file = write_pair(tmp_path, encoded(Image.new("RGB", raw.shape[::-1]), "JPEG"), write_png(raw, bits=bits))
    dataset = BENCHMARKS["ade20k"](str(tmp_path))
    expected = np.array([255, *range(150)])[raw]  # value k is class k - 1, 0 is none
    assert dataset.classes[:3] == ("wall", "building", "sky")
    np.testing.assert_array_equal(scenes_of(dataset)[0].mask, expected)
    file.write_bytes(write_png(raw + 150, bits=16))
    with pytest.raises(ValueError, match=r"00000001\.png: holds the value 15\d, which is not a class of ade20k"):
        scenes_of(dataset)


@pytest.mark.parametrize("turned", [False, True])
def test_an_image_is_turned_as_its_labels_are(turned: bool, tmp_path: Path) -> None:
    """Labels were drawn on the picture as it is seen, or as it lies in the file: their size tells."""
    upright = Image.fromarray(np.arange(48, dtype=np.uint8).repeat(3).reshape(6, 8, 3) * 5)
    exif = Image.Exif()
    exif[274] = 6
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    seen = upright if turned else stored
    write_pair(tmp_path, encoded(stored, "PNG", exif=exif), write_png(np.ones(seen.size[::-1], int), bits=8))
    [scene] = scenes_of(BENCHMARKS["ade20k"](str(tmp_path)))
    np.testing.assert_array_equal(scene.image, np.asarray(seen))


def write_pair(root: Path, image: bytes, labels: bytes) -> Path:
    """One image of ADE20K with its label file, whose path is returned."""
    base, name = root / "ADEChallengeData2016", "ADE_val_00000001"
    for folder, content in (("images", image), ("annotations", labels)):
        (base / folder / "validation").mkdir(parents=True)
        file = base / folder / "validation" / f"{name}.{'jpg' if folder == 'images' else 'png'}"
        file.write_bytes(content)
    return base / "annotations/validation" / f"{name}.png"
