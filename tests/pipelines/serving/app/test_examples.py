"""Images to try: from a folder of images, and from scenes that bring their words."""

import io
from pathlib import Path

import pytest
from PIL import Image

from pipelines.serving.app.examples import MAX_EXAMPLES, read_examples
from tests.support.clutter import add_clutter
from tests.support.scenes_folder import CLASSES, write_scenes


def test_images_are_taken_by_name_and_made_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (2000, 500)).save(tmp_path / "b.png")
    Image.new("RGB", (40, 40)).save(tmp_path / "a.JPG", format="JPEG")
    Image.new("RGB", (1, 40)).save(tmp_path / "line.png")
    (tmp_path / "c.jpg").write_bytes(b"no image")
    (tmp_path / "notes.txt").write_text("no image")
    found = read_examples(str(tmp_path))
    assert [example.name for example in found.images] == ["a", "b"] and found.words == ()
    assert Image.open(io.BytesIO(found.images[1].jpeg)).size == (1024, 256)
    left_out = capsys.readouterr().err.splitlines()
    assert (
        len(left_out) == 2 and "c.jpg: cannot be decoded" in left_out[0] and "line.png (image has 1 × 40" in left_out[1]
    )


def test_no_more_are_taken_than_are_shown(tmp_path: Path) -> None:
    for index in range(MAX_EXAMPLES + 3):
        Image.new("RGB", (20, 20)).save(tmp_path / f"{index:02}.png")
    assert len(read_examples(str(tmp_path)).images) == MAX_EXAMPLES


def test_scenes_bring_their_words(tmp_path: Path) -> None:
    folder = write_scenes(tmp_path / "scenes", 30)
    found = read_examples(str(folder))
    assert len(found.images) == MAX_EXAMPLES and found.words == tuple(CLASSES[1:])


@pytest.mark.parametrize("folder", ["nowhere", "empty"])
def test_a_folder_without_images_is_refused(folder: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no image: give a folder of"):
        read_examples(str(tmp_path / folder))


def test_files_that_are_no_data_are_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    add_clutter(tmp_path)
    assert [example.name for example in read_examples(str(tmp_path)).images] == ["a"]
    assert not capsys.readouterr().err
