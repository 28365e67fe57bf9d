"""Label files of PASCAL Context made from the annotations of PASCAL in Detail."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.benchmarks.context import open_context59, open_context60
from pipelines.benchmarks.context_labels import PrepareContextConfig, draw_labels, prepare_context
from pipelines.cli.main import main
from tests.support.miniatures import Photo, write_context

PERSON, BOTTLE, SOFA = 284, 34, 368
IDS = {5: BOTTLE, 6: 45, 7: 59, 9: 72, 15: PERSON, 18: SOFA}
"""Category ids in trainval_merged.json of VOC's classes."""


def runs(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed run-length encoding."""
    flat = mask.T.ravel()
    changes = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff(changes, prepend=0, append=flat.size).tolist()
    return [0, *lengths] if flat[0] else lengths


def write_annotations(root: Path, photos: list[Photo]) -> Path:
    """The folders as they are before labels are made; the last photo belongs to the training set."""
    base = write_context(root, photos) / "VOCdevkit/VOC2010"
    for file in (base / "SegmentationClassContext").iterdir():
        file.unlink()
    (base / "ImageSets/SegmentationContext/val.txt").unlink()
    content: dict[str, Any] = {"images": [], "annos_segmentation": []}
    for photo, phase in zip(photos, ("val", "val", "train"), strict=True):
        image_id = int(photo.name.replace("_", ""))
        values = photo.values
        height, width = values.shape
        content["images"].append(
            {"file_name": f"{photo.name}.jpg", "image_id": image_id, "phase": phase, "height": height, "width": width}
        )
        for voc, category in IDS.items():
            if (values == voc).any():
                segmentation = {"size": [height, width], "counts": runs(values == voc)}
                content["annos_segmentation"].append(
                    {"image_id": image_id, "category_id": category, "segmentation": segmentation}
                )
    (base / "trainval_merged.json").write_text(json.dumps(content))
    return base


def test_labels_are_made_and_read(tmp_path: Path, photos: list[Photo], capsys: pytest.CaptureFixture[str]) -> None:
    base = write_annotations(tmp_path, photos)
    assert main(["prepare-context", "--root", str(tmp_path), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary == {"labels": str(base / "SegmentationClassContext"), "num_images": 2}
    with_background, without = open_context60(str(tmp_path)), open_context59(str(tmp_path))
    assert [Path(image).stem for image, _ in with_background.files] == [photo.name for photo in photos[:2]]
    names = {5: "bottle", 6: "bus", 7: "car", 9: "chair", 15: "person", 18: "sofa", 0: "background", 255: "background"}
    for photo, scene, other in zip(photos, with_background.read((0, 1)), without.read((0, 1)), strict=False):
        found = np.array(with_background.classes)[scene.mask]
        np.testing.assert_array_equal(found, np.vectorize(names.__getitem__)(photo.values))
        np.testing.assert_array_equal(other.mask, scene.mask - 1)  # 0 − 1 = 255: ignored


def test_the_later_mask_covers_the_earlier() -> None:
    whole = {"size": [2, 3], "counts": [0, 6]}
    left = {"size": [2, 3], "counts": [0, 2, 4]}
    image = {"file_name": "a.jpg", "height": 2, "width": 3}
    masks = [{"category_id": PERSON, "segmentation": whole}, {"category_id": BOTTLE, "segmentation": left}]
    np.testing.assert_array_equal(draw_labels(image, masks), [[10, 37, 37], [10, 37, 37]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["annos_segmentation"][0].update(category_id=3), "category_id 3, which is none of"),
        (
            lambda content: content["annos_segmentation"][0].update(segmentation=[[1, 2, 3, 4]]),
            "not a run-length encoding",
        ),
        (lambda content: content["images"][0].update(height=10), "not a run-length encoding of 10×500"),
        (lambda content: content["images"][0].update(file_name="../../evil.jpg"), "not a name of an image"),
        (lambda content: content["images"][0].update(height=10**6, width=10**6), "1000000×1000000 pixels"),
        (lambda content: content["images"][0].pop("phase"), r"'images.0.phase': Field required"),
        (lambda content: content.pop("images"), "'images': Field required"),
    ],
)
def test_unfit_annotations_are_named(tmp_path: Path, photos: list[Photo], change: Any, message: str) -> None:
    base = write_annotations(tmp_path, photos)
    content = json.loads((base / "trainval_merged.json").read_text())
    change(content)
    (base / "trainval_merged.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as caught:
        prepare_context(PrepareContextConfig(root=str(tmp_path)))
    assert "trainval_merged.json" in str(caught.value) and "\n" not in str(caught.value)


def test_annotations_that_are_missing_or_no_json_are_named(tmp_path: Path, photos: list[Photo]) -> None:
    base = write_annotations(tmp_path, photos)
    with pytest.raises(ValueError, match="prepare-context --root"):
        open_context60(str(tmp_path))
    for content in ("{", "[]"):
        (base / "trainval_merged.json").write_text(content)
        with pytest.raises(ValueError, match=r"trainval_merged\.json is corrupted"):
            prepare_context(PrepareContextConfig(root=str(tmp_path)))
    (base / "trainval_merged.json").unlink()
    with pytest.raises(ValueError, match=r"none of .*trainval_merged\.json exists"):
        prepare_context(PrepareContextConfig(root=str(tmp_path)))
