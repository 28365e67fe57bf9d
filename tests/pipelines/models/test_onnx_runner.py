"""The program beside the ONNX graphs, against `Segmenter`, for the options of a protocol."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from groupvit.checkpoint import load, save
from groupvit.config import SegmentationConfig, to_dict
from groupvit.segmenter import Segmenter
from groupvit.tokenizer import Tokenizer
from pipelines.models.export import ExportConfig, export
from pipelines.models.onnx_runner import OnnxSegmenter
from tests.support.exits import differing_pixels
from tests.support.running_app import blocks
from tests.support.small_checkpoint import contrasting_model

WORDS = ["dog", "boat", "grass", "person"]
PLAIN = SegmentationConfig(short_side=128, window=128, stride=64, background_threshold=0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and its export beside it."""
    folder = tmp_path_factory.mktemp("runner")
    save(folder / "checkpoint", contrasting_model(), state={"config": {"segmentation": to_dict(PLAIN)}})
    export(ExportConfig(checkpoint=str(folder / "checkpoint"), to="onnx", out=str(folder / "onnx")))
    return folder


@pytest.fixture(scope="module")
def ours(folder: Path) -> Segmenter:
    return Segmenter(load(folder / "checkpoint"), PLAIN, Tokenizer())


@pytest.fixture(scope="module")
def theirs(folder: Path) -> OnnxSegmenter:
    return OnnxSegmenter(folder / "onnx")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"window": None},
        {"masks": "soft", "templates": ("a photo of a {}.", "a drawing of a {}")},
        {"flip": True, "scales": (1.0, 1.5), "antialias": True},
        {"background_prompts": ("sky", "wall"), "top_classes": None, "logit_scale": "multi_label"},
        {"background_rule": "constant", "top_classes": 2, "short_side": None},
        {"background_threshold": None},
    ],
    ids=lambda options: " ".join(options) or "plain",
)
def test_every_option_gives_the_labels_of_the_segmenter(
    options: dict[str, Any], ours: Segmenter, theirs: OnnxSegmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    for segmenter in (ours, theirs):
        monkeypatch.setattr(segmenter, "segmentation", replace(PLAIN, **options))
    labels: dict[str, dict[str, np.ndarray]] = {"ours": {}, "theirs": {}}
    for number, size in enumerate([(160, 128), (211, 97)]):
        picture = np.asarray(blocks(96, 128, seed=number).resize(size, Image.Resampling.BICUBIC))
        expected, found = ours.segment(picture, WORDS), theirs.segment(picture, WORDS)
        assert found.names == expected.names
        assert list(found.shares.values()) == pytest.approx(expected.shares, abs=1e-3)
        labels["ours"][str(number)], labels["theirs"][str(number)] = expected.labels, found.labels
    assert sum(differing_pixels(labels["ours"], labels["theirs"]).values()) <= 2  # ties, see test_same_labels.py
    assert any(len(np.unique(one)) > 1 for one in labels["ours"].values())


def test_the_background_can_be_changed(ours: Segmenter, theirs: OnnxSegmenter) -> None:
    picture = np.asarray(blocks())
    for background, threshold in ((False, None), (True, 0.9)):
        expected, found = (
            segmenter.segment(picture, WORDS, background=background, background_threshold=threshold)
            for segmenter in (ours, theirs)
        )
        assert found.names == expected.names and (found.labels != expected.labels).sum() <= 2
    for words, message in (([], "classes is empty"), (["dog", "Dog"], "give each word once")):
        with pytest.raises(ValueError, match=message):
            theirs.segment(picture, words)
    with pytest.raises(ValueError, match="at least 16"):
        theirs.segment(picture[:8], WORDS)


def test_the_command(folder: Path, theirs: OnnxSegmenter, tmp_path: Path) -> None:
    blocks().save(tmp_path / "photo.png")

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, str(folder / "onnx/segment_onnx.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)

    done = run("photo.png", *WORDS, "--out", "mask.png")
    assert done.returncode == 0, done.stderr
    expected = theirs.segment(np.asarray(blocks()), WORDS)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "mask.png")), expected.labels)
    assert [line.split()[-1] for line in done.stdout.splitlines()] == ["background", *WORDS]
    refused = run("nowhere.png", "dog")
    assert refused.returncode == 2 and refused.stderr.startswith("segment_onnx.py: error: ")


@pytest.mark.parametrize("options", [{"pamr_iterations": 10}, {"grouping": False}])
def test_options_that_the_program_lacks_are_refused(options: dict[str, Any], tmp_path: Path) -> None:
    state = {"config": {"segmentation": to_dict(replace(PLAIN, **options))}}
    save(tmp_path / "checkpoint", contrasting_model(), state=state)
    with pytest.raises(ValueError, match=f"segmentation.{next(iter(options))}=.* has no counterpart in ONNX"):
        export(ExportConfig(checkpoint=str(tmp_path / "checkpoint"), to="onnx", out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()
