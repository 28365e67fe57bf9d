"""Folders of images of one's own, with each kind of masks; and what is said of those that cannot be used."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines import storage
from pipelines.benchmarks.class_file import read_class_file
from pipelines.benchmarks.dataset import Scene
from pipelines.benchmarks.folder import open_folder
from tests.support.clutter import add_clutter
from tests.support.hostile_json import hostile
from tests.support.image_files import png
from tests.support.own_folder import CLASSES, KINDS, NAMES, Kind, own_masks, write_own_folder


def scenes_of(root: str) -> list[Scene]:
    dataset = open_folder(root)
    return [scene for block in dataset.blocks(range(len(dataset.part_of_scene)), 1) for scene in dataset.read(block)]


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_masks_gives_the_same_pixels(
    kind: Kind, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_own_folder(tmp_path / "own", kind)
    add_clutter(root / "images")
    dataset = open_folder(str(root))
    assert dataset.classes == NAMES and dataset.has_background
    assert dataset.words == (("dog", "puppy"), ("green grass",))
    scenes = scenes_of(str(root))
    assert [scene.caption for scene in scenes] == ["a.jpg", "b c.png"]
    for scene, (file, mask) in zip(scenes, own_masks().items(), strict=True):
        np.testing.assert_array_equal(scene.mask, mask)
        if file.endswith(".png"):
            np.testing.assert_array_equal(scene.image, np.array(Image.open(root / "images" / file)))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", KINDS)
def test_it_may_be_in_object_storage(kind: Kind, tmp_path: Path, bucket: str) -> None:
    root = write_own_folder(tmp_path / "own", kind)
    for file in root.rglob("*"):
        if file.is_file():
            storage.write_bytes(f"{bucket}/{file.relative_to(root)}", file.read_bytes())
    for scene, mask in zip(scenes_of(bucket), own_masks().values(), strict=True):
        np.testing.assert_array_equal(scene.mask, mask)
    assert open_folder(bucket).digest == open_folder(str(root)).digest


@pytest.mark.parametrize("kind", KINDS[1:])
def test_without_background_pixels_of_no_region_are_ignored(kind: Kind, tmp_path: Path) -> None:
    root = write_own_folder(tmp_path / "own", kind, classes="dog\ngreen grass\n")
    assert not open_folder(str(root)).has_background
    for scene, mask in zip(scenes_of(str(root)), own_masks().values(), strict=True):
        np.testing.assert_array_equal(scene.mask, mask - np.uint8(1))  # 0 − 1 = 255


def test_values_of_label_files_count_lines_from_0_and_255_is_ignored(tmp_path: Path) -> None:
    root = write_own_folder(tmp_path / "own", "labels", classes="dog\ngreen grass\nsky\n")
    mask = own_masks()["a.jpg"]
    mask[:5] = 255
    (root / "labels/a.png").write_bytes(png(mask))
    np.testing.assert_array_equal(scenes_of(str(root))[0].mask, mask)


def test_polygons_are_drawn_and_later_ones_cover(tmp_path: Path) -> None:
    root = write_own_folder(tmp_path / "own", "coco")
    content = json.loads((root / "coco.json").read_text())
    square, right_half = [10, 10, 20, 10, 20, 20, 10, 20], [15, 10, 20, 10, 20, 20, 15, 20]
    content["annotations"] = [
        {"image_id": 7, "category_id": 20, "segmentation": [square]},
        {"image_id": 7, "category_id": 30, "segmentation": [right_half, [0, 0, 3, 0, 3, 3, 0, 3]]},
    ]
    (root / "coco.json").write_text(json.dumps(content))
    expected = np.zeros((64, 96), np.uint8)
    expected[10:20, 10:15], expected[10:20, 15:20], expected[:3, :3] = 1, 2, 2
    first, second = scenes_of(str(root))
    np.testing.assert_array_equal(first.mask, expected)
    assert not second.mask.any()


@pytest.mark.parametrize("kind", KINDS)
def test_images_that_nobody_has_annotated_are_left_out(
    kind: Kind, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_own_folder(tmp_path / "own", kind)
    shutil.copy(root / "images/a.jpg", root / "images/later.jpg")
    if kind == "label-studio":
        tasks = json.loads((root / "label-studio.json").read_text())
        tasks.append({"id": 3, "data": {"photo": "s3://bucket/later.jpg", "note": "x"}, "annotations": []})
        (root / "label-studio.json").write_text(json.dumps(tasks))
    assert len(scenes_of(str(root))) == 2
    line = capsys.readouterr().err
    assert line.startswith("folder: 1 of 3 images have no masks in ") and line.endswith(": left out\n")


@pytest.mark.parametrize("kind", KINDS)
def test_the_digest_is_of_the_data(kind: Kind, tmp_path: Path) -> None:
    one, two = (write_own_folder(tmp_path / name, kind) for name in ("one", "two"))
    assert open_folder(str(one)).digest == open_folder(str(two)).digest
    (two / "images/a.jpg").write_bytes((two / "images/a.jpg").read_bytes() + b"\0")
    assert open_folder(str(one)).digest != open_folder(str(two)).digest


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_photo_that_is_turned_by_its_exif_data_may_have_masks_of_either_side(kind: Kind, tmp_path: Path) -> None:
    root = write_own_folder(tmp_path / "own", kind)
    turned = Image.Exif()
    turned[0x0112] = 6
    with Image.open(root / "images/a.jpg") as image:
        image.load()
        image.save(root / "images/a.jpg", exif=turned)
    scene = scenes_of(str(root))[0]
    assert scene.image.shape[:2] == scene.mask.shape == (64, 96)


def changed(file: str, change: Callable[[Any], Any]) -> Callable[[Path], Any]:
    def apply(root: Path) -> None:
        content = json.loads((root / file).read_text())
        change(content)
        (root / file).write_text(json.dumps(content))

    return apply


MISTAKES: list[tuple[Kind, Callable[[Path], Any], str]] = [
    ("labels", lambda root: (root / "classes.txt").unlink(), r"root=.*classes\.txt does not exist; write a name"),
    ("labels", lambda root: shutil.rmtree(root / "images"), "has no image in"),
    ("labels", lambda root: shutil.rmtree(root / "labels"), "has no masks: none of"),
    ("labels", lambda root: (root / "coco.json").write_text("{}"), r"has labels/\*\.png and coco\.json: leave the one"),
    ("labels", lambda root: (root / "images/a.jpg").unlink(), r"labels/a\.png has no image: add it"),
    (
        "labels",
        lambda root: (root / "images/a.gif").write_bytes(b"x"),
        r"labels/a\.png is for a\.gif and a\.jpg: rename",
    ),
    (
        "labels",
        lambda root: (root / "labels/a.png").write_bytes(png(np.full((64, 96), 3, np.uint8))),
        "holds the value 3",
    ),
    ("labels", lambda root: (root / "labels/a.png").write_bytes(png(np.zeros((9, 9), np.uint8))), "they must agree"),
    ("coco", lambda root: (root / "coco.json").write_text("{"), r"coco\.json is corrupted"),
    ("coco", changed("coco.json", lambda c: c.pop("categories")), "'categories': Field required"),
    ("coco", changed("coco.json", lambda c: c["images"][0].update(file_name="../a.jpg")), "not a path in its folder"),
    ("coco", changed("coco.json", lambda c: c["images"][0].update(file_name="x.jpg")), "has 1 images that are not in"),
    ("coco", changed("coco.json", lambda c: c["images"][0].update(id=8)), "or its id 8 twice"),
    (
        "coco",
        changed("coco.json", lambda c: c["images"][0].update(width=97)),
        r"size \[64, 96\], its image has \[64, 97\]",
    ),
    ("coco", changed("coco.json", lambda c: c["images"][0].update(width=10**6, height=10**6)), "shrink it"),
    (
        "coco",
        changed("coco.json", lambda c: c["annotations"][1].update(category_id=99)),
        "annotation 2 has category_id=99",
    ),
    ("coco", changed("coco.json", lambda c: c["annotations"][1].update(category_id=40)), "'never used', which classes"),
    ("coco", changed("coco.json", lambda c: c["annotations"][1].update(image_id=99)), "annotation 2 has image_id=99"),
    ("coco", changed("coco.json", lambda c: c["annotations"][1].update(segmentation=[[1, 2, 3]])), "has 3 numbers"),
    (
        "coco",
        changed("coco.json", lambda c: c["annotations"][1]["segmentation"].update(counts=[5])),
        r"coco\.json: annotation 2 of a\.jpg: .* do not add up",
    ),
    ("label-studio", lambda root: (root / "label-studio.json").write_text("[]"), "none of the 2 images is annotated"),
    (
        "label-studio",
        changed("label-studio.json", lambda c: c[0].update(data={"image": "x.jpg"})),
        "image 'x.jpg', which",
    ),
    ("label-studio", changed("label-studio.json", lambda c: c[0].update(data={})), "task 1 has the image of no name"),
    ("label-studio", changed("label-studio.json", lambda c: c.append(c[0])), "which another task has, too"),
    (
        "label-studio",
        changed("label-studio.json", lambda c: c[0]["annotations"][1]["result"][0].update(type="polygonlabels")),
        "task 1: region r1 has the type 'polygonlabels': only BrushLabels",
    ),
    (
        "label-studio",
        changed(
            "label-studio.json", lambda c: c[0]["annotations"][1]["result"][0]["value"].update(brushlabels=["cat"])
        ),
        r"brushlabels=\['cat'\]: one is needed, which is a name in classes\.txt",
    ),
    (
        "label-studio",
        changed("label-studio.json", lambda c: c[0]["annotations"][1]["result"][0]["value"].update(rle=[1, 2, 3])),
        r"label-studio\.json: region r1 of a\.jpg: a brush's rle ends before",
    ),
    (
        "label-studio",
        changed("label-studio.json", lambda c: c[0]["annotations"][1]["result"][0].update(original_width=95)),
        "others are not: export the project again",
    ),
]


@pytest.mark.parametrize(("kind", "change", "message"), MISTAKES)
def test_mistakes_are_named_in_one_line(
    kind: Kind, change: Callable[[Path], Any], message: str, tmp_path: Path
) -> None:
    root = write_own_folder(tmp_path / "own", kind)
    change(root)
    with pytest.raises(ValueError, match=message) as caught:
        scenes_of(str(root))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_annotations_made_with_ill_will_give_scenes_or_one_line(kind: Kind, tmp_path: Path) -> None:
    rng = random.Random(0)
    root = write_own_folder(tmp_path / "own", kind)
    document = json.loads((root / f"{kind}.json").read_text())
    refused = []
    for _ in range(40):
        (root / f"{kind}.json").write_bytes(hostile(document, rng))
        try:
            assert len(scenes_of(str(root))) > 0
        except ValueError as error:
            refused.append(str(error))
    assert len(refused) > 10 and not [line for line in refused if "\n" in line or len(line) > 1000]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no class to look for"),
        ("background\n", "has no class to look for"),
        ("dog\nbackground\n", r"classes\.txt, line 2: 'background': background must be the first"),
        ("background: sky\n", "line 1: .* must be the first class, and has no words"),
        ("dog\n\nDog\n", "line 3: 'dog' is in line 1, too"),
        ("dog: puppy\ncat: Puppy\n", "line 2: 'puppy' is in line 1, too"),
        ("dog:\n", "has no word after the colon"),
        (": dog\n", "has no name of a class"),
        ("dog: background", "has the word background"),
        ("dog: " + "x" * 300, "has 300 characters: give at most 200"),
        ("x" * 300, "has no name of a class"),
        ("\n".join(f"c{number}" for number in range(256)), "has 256 classes: give at most 255"),
    ],
)
def test_lists_of_classes_that_cannot_be_used_are_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_class_file(f"{tmp_path}/classes.txt")
    assert "\n" not in str(caught.value)


def test_a_list_of_classes_may_have_a_byte_order_mark_and_windows_lines(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_bytes(b"\xef\xbb\xbf" + CLASSES.replace("\n", "\r\n").encode())
    assert tuple(entry.name for entry in read_class_file(f"{tmp_path}/classes.txt")) == NAMES
    (tmp_path / "classes.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        read_class_file(f"{tmp_path}/classes.txt")
