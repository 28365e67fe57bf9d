"""The drawn demo data, written for real and read back."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from groupvit.decode import decode_image
from pipelines.benchmarks.scenes import open_scenes
from pipelines.dataset.format import open_dataset
from pipelines.demo.generate import DemoDataConfig, demo_data
from pipelines.demo.shapes import load_shapes


def _config(out: Path, *, num_processes: int = 1, seed: int = 0) -> DemoDataConfig:
    return DemoDataConfig(
        out=str(out),
        num_training_scenes=300,
        num_calibration_scenes=8,
        num_validation_scenes=8,
        evaluation_side=96,
        num_processes=num_processes,
        seed=seed,
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "shapes"
    demo_data("shapes", _config(out))
    return out


def test_training_data_is_a_complete_dataset(written: Path) -> None:
    dataset = open_dataset(str(written / "train"))
    assert dataset.num_samples == 300
    rows = pq.read_table(written / "train" / "data").to_pylist()
    assert len({row["sample_id"] for row in rows}) == 300
    for row in rows[:20]:
        assert decode_image(row["image"]).shape == (row["height"], row["width"], 3)
        [caption], [nouns] = row["captions"], row["nouns"]
        assert nouns and all(noun in caption.replace(",", "").split() for noun in nouns)


def test_validation_has_two_parts_with_every_class(written: Path) -> None:
    scenes = open_scenes(str(written / "validation"))
    assert scenes.classes[0] == "background" and scenes.part_of_scene.count("seen") == 8
    read = [scene for block in scenes.blocks(range(16), 8) for scene in scenes.read(block)]
    for scene in read:
        named = {noun for noun in scenes.classes[1:] if noun in scene.caption.replace(",", "").split()}
        shown = {scenes.classes[value] for value in np.unique(scene.mask) if value}
        assert shown == named
    assert {scene.part for scene in read} == {"seen", "unseen"}


def test_number_of_processes_changes_nothing_but_the_seed_does(written: Path, tmp_path: Path) -> None:
    digest = open_dataset(str(written / "train")).digest
    demo_data("shapes", _config(tmp_path / "two", num_processes=2))
    demo_data("shapes", _config(tmp_path / "other", seed=1))
    assert open_dataset(str(tmp_path / "two" / "train")).digest == digest
    assert open_dataset(str(tmp_path / "other" / "train")).digest != digest
    assert open_scenes(str(tmp_path / "two" / "validation")).digest == open_scenes(str(written / "validation")).digest


def test_finished_data_is_kept_and_other_data_is_refused(written: Path) -> None:
    before = (written / "train" / "dataset.json").stat().st_mtime_ns
    summary = demo_data("shapes", _config(written))
    assert summary["num_scenes"] == {"train": 300, "calibration": 8, "seen": 8, "unseen": 8}
    assert (written / "train" / "dataset.json").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="holds other demo data"):
        demo_data("shapes", _config(written, seed=7))


def test_unseen_cutouts_and_validation_backgrounds_are_not_in_training() -> None:
    material = load_shapes()

    def digests(arrays) -> set[str]:
        return {hashlib.sha256(array.tobytes()).hexdigest() for array in arrays}

    seen = digests(cutout.levels[0] for cutouts in material.seen.values() for cutout in cutouts)
    unseen = digests(cutout.levels[0] for cutouts in material.unseen.values() for cutout in cutouts)
    assert set(material.unseen) == set(material.seen) == set(material.classes)
    assert not seen & unseen
    training = digests(background.image for background in material.training_backgrounds)
    assert not training & digests(background.image for background in material.validation_backgrounds)


def test_user_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="num_training_scenes=0"):
        DemoDataConfig(out="x", num_training_scenes=0)
    with pytest.raises(ValueError, match="give stamps or shapes"):
        demo_data("photos", DemoDataConfig(out="x"))
