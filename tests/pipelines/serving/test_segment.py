"""`groupvit segment` on image files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from groupvit.checkpoint import save
from pipelines.cli.main import main
from pipelines.errors import PartlyDone
from pipelines.serving.segment import SegmentConfig, segment
from tests.support.small_model import WORDS, small_model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("checkpoints") / "random"
    save(folder, small_model(WORDS))
    return str(folder)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)).save(path)
    return path


def config_of(checkpoint: str, tmp_path: Path, *images: Path, **fields: Any) -> SegmentConfig:
    given = {"checkpoint": checkpoint, "classes": "dog, grass", "out": str(tmp_path / "out"), **fields}
    return SegmentConfig(images=tuple(str(image) for image in images), **given)


def test_labels_overlay_and_a_summary_are_written(checkpoint: str, photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = segment(config_of(checkpoint, tmp_path, photo, classes="dog, grass ,"))
    shares = summary["percent_of_pixels"]
    assert list(shares) == ["background", "dog", "grass"] and sum(shares.values()) == pytest.approx(100, abs=0.02)
    with Image.open(out / "labels.png") as file:
        labels, palette = np.array(file), np.array(file.getpalette()).reshape(-1, 3)
    assert labels.shape == (90, 120) and shares["dog"] == pytest.approx(100 * (labels == 1).mean(), abs=0.01)
    with Image.open(out / "overlay.png") as file:
        assert file.height > 90, "there is a legend below"
    assert json.loads((out / "segmentation.json").read_text()) == summary
    assert summary["names"] == ["background", "dog", "grass"]
    assert summary["colours"]["dog"] == palette[1].tolist()
    assert summary["checkpoint"] == checkpoint and summary["protocol"]["background_threshold"] == 0.95
    assert sorted(file.name for file in out.iterdir()) == ["labels.png", "overlay.png", "segmentation.json"]


def test_groups_of_each_stage_are_drawn(checkpoint: str, photo: Path, tmp_path: Path) -> None:
    segment(config_of(checkpoint, tmp_path, photo, show_groups=True))
    for stage in (1, 2):
        with Image.open(tmp_path / "out" / f"groups_stage_{stage}.png") as file:
            assert file.size == (120, 90)


def test_large_images_are_drawn_smaller(checkpoint: str, tmp_path: Path) -> None:
    Image.new("RGB", (3000, 1500)).save(tmp_path / "large.png")
    segment(config_of(checkpoint, tmp_path, tmp_path / "large.png", show_groups=True))
    widths = {file.name: Image.open(file).width for file in (tmp_path / "out").glob("*.png")}
    assert widths == {"labels.png": 3000, "overlay.png": 2048, "groups_stage_1.png": 2048, "groups_stage_2.png": 2048}


def test_without_background_every_pixel_gets_a_word(checkpoint: str, photo: Path, tmp_path: Path) -> None:
    summary = segment(config_of(checkpoint, tmp_path, photo, background=False))
    assert list(summary["percent_of_pixels"]) == ["dog", "grass"]


def test_a_photo_is_turned_upright(checkpoint: str, photo: Path, tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation: turned by a quarter
    with Image.open(photo) as image:
        image.save(photo, exif=turned)
    segment(config_of(checkpoint, tmp_path, photo))
    with Image.open(tmp_path / "out" / "labels.png") as file:
        assert file.size == (90, 120)


def test_images_of_one_name_get_folders_of_their_own(
    checkpoint: str, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = [tmp_path / "a" / "PHOTO.png", tmp_path / "b" / "photo.png"]
    for size, path in zip((40, 50), others, strict=True):
        path.parent.mkdir()
        Image.new("RGB", (size, 40)).save(path)
    result = segment(config_of(checkpoint, tmp_path, photo, *others))
    widths = {}
    for folder in ("photo", "PHOTO-2", "photo-3"):
        with Image.open(tmp_path / "out" / folder / "labels.png") as file:
            widths[folder] = file.width
    assert widths == {"photo": 120, "PHOTO-2": 40, "photo-3": 50}
    assert [Path(summary["out"]).name for summary in result["images"]] == list(widths)
    assert "[3/3]" in capsys.readouterr().out


def test_one_bad_image_does_not_stop_the_others(checkpoint: str, photo: Path, tmp_path: Path) -> None:
    broken, line, last = tmp_path / "broken.jpg", tmp_path / "line.png", tmp_path / "last.png"
    broken.write_bytes(photo.read_bytes()[:200])
    Image.new("RGB", (300, 1)).save(line)
    Image.new("RGB", (40, 40)).save(last)
    with pytest.raises(
        PartlyDone, match=r"3 of 5 images were not segmented: .*broken.jpg.*missing.jpg.*line.png: image has 300 × 1"
    ) as done:
        segment(config_of(checkpoint, tmp_path, broken, tmp_path / "missing.jpg", photo, line, last))
    assert [Path(summary["image"]).name for summary in done.value.result["images"]] == ["photo.jpg", "last.png"]
    assert list(done.value.result["failed"]) == [str(broken), str(tmp_path / "missing.jpg"), str(line)]
    assert (tmp_path / "out" / "last" / "labels.png").exists()


def test_the_command_takes_images_anywhere_and_tells_by_its_exit_code(
    checkpoint: str, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--checkpoint", checkpoint, "--classes", "dog, grass", "--no-background", "--out", str(tmp_path / "out")]
    assert main(["segment", str(photo), *flags, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["names"] == ["dog", "grass"]
    assert main(["segment", str(photo), str(tmp_path / "missing.jpg"), *flags, "--json"]) == 1
    captured = capsys.readouterr()
    assert list(json.loads(captured.out.splitlines()[-1])["failed"]) == [str(tmp_path / "missing.jpg")]
    assert captured.err.splitlines()[-1].startswith("groupvit: error: 1 of 2 images were not segmented: image=")
    assert main(["segment", str(tmp_path / "missing.jpg"), *flags]) == 2
    assert main(["segment", *flags]) == 2
    assert "images is empty" in capsys.readouterr().err


def test_many_images_have_a_progress_line(
    checkpoint: str, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = tmp_path / "given"
    given.mkdir()
    for number in range(21):
        Image.new("RGB", (16, 16)).save(given / f"{number}.png")
    result = segment(config_of(checkpoint, tmp_path, given))
    captured = capsys.readouterr()
    assert len(result["images"]) == 21 and captured.out == ""
    assert captured.err.splitlines()[-1].startswith("segmented 21 of 21 images")


@pytest.mark.parametrize(
    ("image", "fields", "message"),
    [
        ("missing.jpg", {}, r"image=.*missing\.jpg does not exist"),
        ("broken.jpg", {}, "broken.jpg: cannot be decoded"),
        ("empty", {}, "is a folder without images: give image files"),
        ("empty/*.jpg", {}, r"images=.*empty/\*\.jpg matches no file"),
        ("photo.jpg", {"classes": " , "}, "classes is empty"),
        ("photo.jpg", {"classes": "dog, Dog"}, "'dog' and 'Dog', which are the same"),
        ("photo.jpg", {"classes": "dog, background"}, "'background', which is what suits no other word"),
        ("photo.jpg", {"classes": "word " * 500}, "has 500 tokens, and 13 fit"),
        ("photo.jpg", {"background_threshold": 2.0}, "background_threshold=2.0 is out of range"),
        ("photo.jpg", {"background_threshold": 0.2, "background": False}, "give one of them"),
        ("photo.jpg", {"checkpoint": "/nowhere"}, "/nowhere is neither a checkpoint"),
    ],
)
def test_bad_input_is_refused(
    image: str, fields: dict[str, Any], message: str, checkpoint: str, photo: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.jpg").write_bytes(photo.read_bytes()[:200])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=message) as caught:
        segment(config_of(fields.pop("checkpoint", checkpoint), tmp_path, tmp_path / image, **fields))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
