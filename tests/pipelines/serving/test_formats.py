"""What `groupvit segment` writes in formats of other tools: the pixels of each are those of labels.png."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from groupvit.checkpoint import save
from pipelines import storage
from pipelines.errors import PartlyDone
from pipelines.masks.brush import decode_brush
from pipelines.masks.coco import decode_mask
from pipelines.serving.formats.catalogue import OUTPUTS, Format
from pipelines.serving.segment import SegmentConfig, segment
from tests.support.exits import CleanEnvironment, run_outside
from tests.support.rings import filled
from tests.support.small_model import WORDS, distinct_model

CLASSES = ["dog", 'a "red" <car>', "tree"]
STEMS = ("a", "b", "sub/c d")
FORMATS: tuple[Format, ...] = tuple(OUTPUTS)
Maps = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("checkpoints") / "random"
    save(folder, distinct_model(WORDS))
    return str(folder)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images, one of them below the folder, and a file that is none."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(3)
    (folder / "sub").mkdir()
    for name, (height, width) in {"a.jpg": (90, 120), "b.png": (64, 200), "sub/c d.jpg": (150, 77)}.items():
        coarse = rng.integers(0, 255, (height // 9, width // 9, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((width, height)).save(folder / name)
    (folder / "notes.txt").write_text("not an image")
    return folder


def config_of(checkpoint: str, images: object, out: object, **fields: Any) -> SegmentConfig:
    given = {"checkpoint": checkpoint, "classes": ",".join(CLASSES), **fields}
    return SegmentConfig(images=(str(images),), out=str(out), **given)


def labels_of_pngs(out: str) -> Maps:
    return {stem: np.array(Image.open(Path(out) / stem / "labels.png")) for stem in STEMS}


def read_json(*parts: str) -> Any:
    return json.loads(storage.read_bytes(storage.join(*parts)))


def numbers_of_coco(out: str) -> Maps:
    content = read_json(out, "coco.json")
    assert [(entry["id"], entry["name"]) for entry in content["categories"]] == list(enumerate(CLASSES, start=1))
    maps = {entry["id"]: np.zeros((entry["height"], entry["width"]), int) for entry in content["images"]}
    for annotation in content["annotations"]:
        height, width = annotation["segmentation"]["size"]
        mask = decode_mask(annotation["segmentation"]["counts"], height, width)
        x, y, box_width, box_height = annotation["bbox"]
        assert annotation["area"] == mask.sum() == mask[y : y + box_height, x : x + box_width].sum() > 0
        maps[annotation["image_id"]][mask] = annotation["category_id"]
    assert [entry["file_name"] for entry in content["images"]] == ["a.jpg", "b.png", "sub/c d.jpg"]
    return dict(zip(STEMS, maps.values(), strict=True))


def numbers_of_label_studio(out: str) -> Maps:
    config = ElementTree.fromstring(storage.read_bytes(storage.join(out, "label-studio.xml")))
    assert [label.attrib["value"] for label in config.iter("Label")] == CLASSES
    [brush], [image] = config.iter("BrushLabels"), config.iter("Image")
    maps: Maps = {}
    for stem, task in zip(STEMS, read_json(out, "label-studio.json"), strict=True):
        [prediction] = task["predictions"]
        for region in prediction["result"]:
            assert (region["from_name"], region["to_name"]) == (brush.attrib["name"], image.attrib["name"])
            size = (region["original_height"], region["original_width"])
            [word] = region["value"]["brushlabels"]
            mask = decode_brush(region["value"]["rle"], *size)
            maps.setdefault(stem, np.zeros(size, int))[mask] = CLASSES.index(word) + 1
    return maps


def numbers_of_geojson(out: str) -> Maps:
    maps: Maps = {}
    for stem in STEMS:
        content = read_json(out, f"{stem}.geojson")
        size = (content["height"], content["width"])
        maps[stem] = np.zeros(size, int)
        for feature in content["features"]:
            assert feature["geometry"]["type"] == "MultiPolygon"
            mask = np.any([filled(polygon, *size) for polygon in feature["geometry"]["coordinates"]], axis=0)
            assert mask.sum() == feature["properties"]["pixels"]
            assert feature["properties"]["classification"]["name"] == feature["properties"]["name"]
            maps[stem][mask] = CLASSES.index(feature["properties"]["name"]) + 1
    return maps


def numbers_of_fiftyone(out: str) -> Maps:
    targets = read_json(out, "mask_targets.json")
    assert targets == {"0": "background"} | {str(number): word for number, word in enumerate(CLASSES, start=1)}
    labels = {stem: Image.open(Path(out) / "labels" / f"{stem}.png") for stem in STEMS}
    assert {label.mode for label in labels.values()} == {"L"}  # readers turn palettes into colours
    return {stem: np.array(label) for stem, label in labels.items()}


OTHER_TOOLS = """
import json, sys
import numpy as np
from label_studio_sdk.converter.brush import decode_rle
from pycocotools.coco import COCO

folder, classes = sys.argv[1], json.loads(sys.argv[2])
coco, maps = COCO(f"{folder}/coco-rle/coco.json"), {}
for number, image in enumerate(coco.loadImgs(sorted(coco.getImgIds()))):
    maps[str(number)] = np.zeros((image["height"], image["width"]), int)
    for annotation in coco.loadAnns(coco.getAnnIds(image["id"])):
        maps[str(number)][coco.annToMask(annotation) > 0] = annotation["category_id"]
np.savez(f"{folder}/coco-rle.npz", **maps)
maps = {}
with open(f"{folder}/label-studio/label-studio.json") as file:
    tasks = json.load(file)
for number, task in enumerate(tasks):
    for region in task["predictions"][0]["result"]:
        size = (region["original_height"], region["original_width"])
        covered = decode_rle(region["value"]["rle"]).reshape(*size, 4)[:, :, 3] > 0
        [word] = region["value"]["brushlabels"]
        maps.setdefault(str(number), np.zeros(size, int))[covered] = classes.index(word) + 1
np.savez(f"{folder}/label-studio.npz", **maps)
"""
"""A program that reads both with the packages of those who made the formats, and writes the number of each pixel."""

READERS: dict[Format, Callable[[str], Maps]] = {
    "coco-rle": numbers_of_coco,
    "label-studio": numbers_of_label_studio,
    "fiftyone": numbers_of_fiftyone,
    "geojson": numbers_of_geojson,
}


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("kind", FORMATS)
def test_the_pixels_are_those_of_the_labels(
    kind: Format, background: bool, checkpoint: str, photos: Path, tmp_path: Path
) -> None:
    options = {"background_threshold": 0.25} if background else {"background": False}
    segment(config_of(checkpoint, photos, tmp_path / "png", **options))
    result = segment(config_of(checkpoint, photos, tmp_path / "out", format=kind, **options))
    found = READERS[kind](str(tmp_path / "out"))
    for stem, labels in labels_of_pngs(str(tmp_path / "png")).items():
        np.testing.assert_array_equal(found[stem], labels + (0 if background else 1))
    assert len(np.unique(np.concatenate([labels.ravel() for labels in found.values()]))) >= (3 if background else 2)
    assert read_json(str(tmp_path / "out"), "segmentation.json") == result
    assert result["failed"] == {} and [Path(entry["image"]).name for entry in result["images"]] == [
        "a.jpg",
        "b.png",
        "c d.jpg",
    ]
    written = {name for name in storage.list_sizes(str(tmp_path / "out")) if not name.startswith("data/")}
    assert written == set(OUTPUTS[kind].files([])) | {"segmentation.json"} | (
        {f"{stem}.geojson" for stem in STEMS} if kind == "geojson" else set()
    ) | ({f"labels/{stem}.png" for stem in STEMS} if kind == "fiftyone" else set())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_packages_of_other_tools_read_the_same_pixels(checkpoint: str, photos: Path, tmp_path: Path) -> None:
    segment(config_of(checkpoint, photos, tmp_path / "png", background_threshold=0.25))
    for kind in ("coco-rle", "label-studio"):
        segment(config_of(checkpoint, photos, tmp_path / kind, format=kind, background_threshold=0.25))
    tools = CleanEnvironment(tmp_path / "tools", "pycocotools", "label-studio-sdk")
    run_outside(tools.python, "-c", OTHER_TOOLS, ".", json.dumps(CLASSES), cwd=tmp_path)
    expected = labels_of_pngs(str(tmp_path / "png"))
    for kind in ("coco-rle", "label-studio"):
        found = np.load(tmp_path / f"{kind}.npz")
        for number, labels in enumerate(expected.values()):
            np.testing.assert_array_equal(found[str(number)], labels)


def test_the_data_set_of_fiftyone_has_the_images(checkpoint: str, photos: Path, tmp_path: Path) -> None:
    segment(config_of(checkpoint, photos, tmp_path, format="fiftyone"))
    for name in ("a.jpg", "b.png", "sub/c d.jpg"):
        assert (tmp_path / "data" / name).read_bytes() == (photos / name).read_bytes()


def test_tasks_name_images_as_label_studio_finds_them(
    checkpoint: str, photos: Path, tmp_path: Path, bucket: str
) -> None:
    for name in ("a.jpg", "sub/c d.jpg"):
        storage.write_bytes(f"{bucket}/photos/{name}", (photos / name).read_bytes())
    result = segment(config_of(checkpoint, f"{bucket}/photos", f"{bucket}/out", format="label-studio"))
    addresses = [task["data"]["image"] for task in read_json(f"{bucket}/out", "label-studio.json")]
    assert addresses == [f"{bucket}/photos/a.jpg", f"{bucket}/photos/sub/c d.jpg"]
    assert len(result["images"]) == 2
    segment(config_of(checkpoint, photos, tmp_path, format="label-studio"))
    addresses = [task["data"]["image"] for task in read_json(str(tmp_path), "label-studio.json")]
    assert addresses == [f"/data/local-files/?d={name}" for name in ("a.jpg", "b.png", "sub/c%20d.jpg")]


@pytest.mark.parametrize("kind", FORMATS)
def test_nothing_is_overwritten(kind: Format, checkpoint: str, photos: Path, tmp_path: Path) -> None:
    first = next(iter(OUTPUTS[kind].files([])), "segmentation.json")
    segment(config_of(checkpoint, photos / "a.jpg", tmp_path, format=kind))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(ValueError, match=r"out=.* has [\w.-]+ already: give another folder") as caught:
        segment(config_of(checkpoint, photos, tmp_path, format=kind))
    assert "\n" not in str(caught.value)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before and tmp_path / first in before


@pytest.mark.parametrize("kind", FORMATS)
def test_images_of_one_name_are_refused_where_files_would_have_one(
    kind: Format, checkpoint: str, photos: Path, tmp_path: Path
) -> None:
    given = tmp_path / "given"
    given.mkdir()
    for name in ("a.jpg", "A.png"):
        Image.open(photos / "a.jpg").save(given / name)
    if OUTPUTS[kind].keeps_endings:
        assert len(segment(config_of(checkpoint, given, tmp_path / "out", format=kind))["images"]) == 2
        return
    with pytest.raises(ValueError, match=r"A\.png and .*a\.jpg would have the same name in format="):
        segment(config_of(checkpoint, given, tmp_path / "out", format=kind))
    assert not (tmp_path / "out").exists()


def test_the_good_images_are_written_if_others_cannot_be_read(checkpoint: str, photos: Path, tmp_path: Path) -> None:
    config = config_of(checkpoint, f"{photos}/*", tmp_path, format="coco-rle", batch_size=2)
    with pytest.raises(PartlyDone, match=r"1 of 3 images were not segmented: .*notes\.txt") as done:
        segment(config)
    assert [entry["file_name"] for entry in read_json(str(tmp_path), "coco.json")["images"]] == ["a.jpg", "b.png"]
    assert read_json(str(tmp_path), "segmentation.json") == done.value.result


def test_what_was_segmented_is_written_when_it_is_stopped(
    checkpoint: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read = storage.read_bytes

    def stop_at_b(uri: str, *limit: int) -> bytes:
        if uri.endswith("b.png"):
            raise KeyboardInterrupt
        return read(uri, *limit)

    monkeypatch.setattr(storage, "read_bytes", stop_at_b)
    with pytest.raises(KeyboardInterrupt):
        segment(config_of(checkpoint, photos, tmp_path, format="coco-rle"))
    assert [entry["file_name"] for entry in read_json(str(tmp_path), "coco.json")["images"]] == ["a.jpg"]
    assert capsys.readouterr().err.endswith(f"out={tmp_path} has 1 of 3 images\n")


def test_masks_have_the_same_bits_for_any_batch_size(checkpoint: str, photos: Path, tmp_path: Path) -> None:
    for size in (1, 2, 8):
        segment(config_of(checkpoint, photos, tmp_path / str(size), background=False, batch_size=size))
    first, *others = (labels_of_pngs(str(tmp_path / str(size))) for size in (1, 2, 8))
    for other in others:
        for stem, labels in first.items():
            np.testing.assert_array_equal(other[stem], labels)
    with pytest.raises(ValueError, match="batch_size=0 is too small"):
        config_of(checkpoint, photos, tmp_path, batch_size=0)


def test_groups_are_drawn_as_png_only(checkpoint: str, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="show_groups=True with format=geojson"):
        config_of(checkpoint, photos, tmp_path, show_groups=True, format="geojson")
