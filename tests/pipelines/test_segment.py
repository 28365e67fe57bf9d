"""`groupvit segment` on image files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from groupvit.checkpoint import save
from groupvit.config import ImageEncoderConfig, ModelConfig, TextEncoderConfig
from groupvit.model import GroupViT
from pipelines.segment import SegmentConfig, segment


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    image = ImageEncoderConfig(
        image_size=32,
        patch_size=8,
        width=32,
        depths=(1, 1, 1),
        num_heads=(2, 2, 2),
        num_group_tokens=(8, 4, 0),
        num_output_groups=(8, 4),
    )
    text = TextEncoderConfig(context_length=20, width=32, depth=1, num_heads=2)
    folder = tmp_path_factory.mktemp("checkpoints") / "random"
    save(folder, GroupViT(ModelConfig(image=image, text=text, embedding_dim=16, projector_width=32)))
    return str(folder)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)).save(path)
    return path


def test_labels_overlay_and_overview_are_written(checkpoint: str, photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = segment(SegmentConfig(image=str(photo), checkpoint=checkpoint, classes="dog, grass ,", out=str(out)))
    shares = summary["percent_of_pixels"]
    assert list(shares) == ["background", "dog", "grass"] and sum(shares.values()) == pytest.approx(100, abs=0.02)
    with Image.open(out / "labels.png") as file:
        labels = np.array(file)
    assert labels.shape == (90, 120) and shares["dog"] == pytest.approx(100 * (labels == 1).mean(), abs=0.01)
    with Image.open(out / "overlay.png") as file:
        assert file.size == (120, 90)
    with Image.open(out / "overview.png") as file:
        assert file.width > 4 * 360, "image, prediction and two stages of groups"


def test_without_background_every_pixel_gets_a_word(checkpoint: str, photo: Path, tmp_path: Path) -> None:
    config = SegmentConfig(
        image=str(photo), checkpoint=checkpoint, classes="dog,grass", out=str(tmp_path / "out"), background=False
    )
    assert list(segment(config)["percent_of_pixels"]) == ["dog", "grass"]


def test_a_photo_is_turned_upright(checkpoint: str, photo: Path, tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation: turned by a quarter
    with Image.open(photo) as image:
        image.save(photo, exif=turned)
    segment(SegmentConfig(image=str(photo), checkpoint=checkpoint, classes="dog", out=str(tmp_path / "out")))
    with Image.open(tmp_path / "out" / "labels.png") as file:
        assert file.size == (90, 120)


@pytest.mark.parametrize(
    ("image", "classes", "message"),
    [
        ("missing.jpg", "dog", r"image=.*missing\.jpg does not exist"),
        ("broken.jpg", "dog", "cannot be read"),
        ("photo.jpg", " , ", "give 1 to 254 different words"),
        ("photo.jpg", "dog, dog", "give 1 to 254 different words"),
    ],
)
def test_bad_input_is_refused(
    image: str, classes: str, message: str, checkpoint: str, photo: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.jpg").write_bytes(photo.read_bytes()[:200])
    config = SegmentConfig(
        image=str(tmp_path / image), checkpoint=checkpoint, classes=classes, out=str(tmp_path / "out")
    )
    with pytest.raises(ValueError, match=message):
        segment(config)
