"""What mistakes cost: each is planted by code of its own, and the number that it gives is traced back to it."""

import contextlib
import dataclasses
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from groupvit.captions import PROMPT_TEMPLATES
from groupvit.checkpoint import load, save
from groupvit.config import SegmentationConfig, to_dict
from groupvit.protocols import unified_protocol
from pipelines.benchmarks.voc import open_voc20, open_voc21
from pipelines.cli.main import main
from pipelines.evaluation.config import EvaluateConfig
from pipelines.evaluation.evaluate import evaluate
from pipelines.evaluation.explain import explain
from pipelines.evaluation.mistakes import mistakes_of
from pipelines.evaluation.nearest import PROTOCOL, nearest
from pipelines.evaluation.variants import Variant
from tests.support.drawn_photos import drawn_photos, with_masks
from tests.support.image_files import png
from tests.support.miniatures import write_voc
from tests.support.naive_evaluation import Rules, naive_miou
from tests.support.small_checkpoint import TAUGHT, contrasting_model, teach

pytestmark = pytest.mark.usefixtures("cluster")

NUM_CPUS = 2
RULES = SegmentationConfig(short_side=128, window=128, stride=64, background_threshold=0.7)
PHOTOS = drawn_photos(10, seed=20)
CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
PLANTED: dict[str, dict[str, Any]] = {
    PROTOCOL: {},
    "square": {"square": 128},
    "small square": {"square": 64},
    "small image": {"short": 64},
    "antialiasing": {"antialias": True},
    "bicubic": {"mode": "bicubic"},
    "CLIP's normalisation": CLIP,
    "normalisation 0.5": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
    "no normalisation": {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)},
    "BGR": {"is_bgr": True},
    "bare words": {"templates": ("{}",)},
    "no full stop": {"templates": ("a photo of a {}",)},
    "prompt ensemble": {"templates": PROMPT_TEMPLATES},
    "benchmark's names": {},
    "threshold 0.35": {"threshold": 0.35},
    "threshold 0.5": {"threshold": 0.5},
    "threshold 0.9": {"threshold": 0.9},
    "threshold 0.95": {"threshold": 0.95},
    "no threshold": {"threshold": 0.0},
    "background as a word": {"background_word": "background"},
    "background rule": {"keeps_best_group": False},
    "all classes": {"top": None},
    "no logit scale": {"scale": 1.0},
    "logit scale twice": {"scale": 50.0**2},
    "soft masks": {"soft": True},
    "hard assignments": {"hard_assignments": True},
    "training mode": {"noise": True},
    "whole image": {"window": None},
    "no overlap": {"stride": 128},
    "labels resized": {"resizes_labels": True},
    "ignored as errors": {"ignored": "as errors"},
    "ignored as background": {"ignored": "as background"},
    "mean over images": {"over_images": True},
    "background left out": {"skips_background": True},
}
"""What each mistake changes in the rules of tests/support/naive_evaluation.py."""
NAMES = {"diningtable": "table", "pottedplant": "plant", "tvmonitor": "monitor"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder, model = tmp_path_factory.mktemp("checkpoints") / "taught", contrasting_model()
    teach(model, PHOTOS[:5], RULES, TAUGHT | {0: "background"})
    with torch.no_grad():
        model.logit_scale.fill_(math.log(50))
    save(folder, model, state={"config": {"segmentation": to_dict(RULES)}})
    return str(folder)


@pytest.fixture(scope="module")
def config(checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> EvaluateConfig:
    return EvaluateConfig(
        checkpoint=checkpoint,
        root=str(write_voc(tmp_path_factory.mktemp("voc"), PHOTOS)),
        benchmark="voc21",
        protocol="model",
        out=str(tmp_path_factory.mktemp("evaluation")),
        precision="float32",
        num_pictures=0,
        num_workers=2,
    )


@pytest.fixture(scope="module")
def explained(config: EvaluateConfig) -> dict[str, Any]:
    with contextlib.redirect_stdout(io.StringIO()):
        return explain(dataclasses.replace(config, explain=True, explain_images=None))


def candidates(explained: dict[str, Any], found: float, **given: Any) -> list[dict[str, Any]]:
    costs = {row["name"]: (row["cost"], row["standard_error"]) for row in explained["mistakes"]}
    given = {"expected": None, "num_images": 10, "num_all": 10} | given
    return nearest(explained["miou"], costs, found=found, **given)["nearest"]


def test_every_mistake_is_planted_below(explained: dict[str, Any]) -> None:
    assert {row["name"] for row in explained["mistakes"]} == set(PLANTED) - {PROTOCOL}


@torch.inference_mode()
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_mistake_is_named(name: str, explained: dict[str, Any], checkpoint: str, config: Any) -> None:
    names = open_voc21(config.root).classes[1:]
    words = names if name == "benchmark's names" else [NAMES.get(each, each) for each in names]
    planted = naive_miou(load(checkpoint), [with_masks(photo) for photo in PHOTOS], words, Rules(**PLANTED[name]))
    first, second, *_ = candidates(explained, planted)
    assert first["name"] == name and first["fits"]
    assert second["distance"] > 2 * first["distance"], "it is only just the first"


def test_the_protocols_number_is_that_of_a_full_evaluation(
    config: EvaluateConfig, explained: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    summary = evaluate(config)
    assert explained["miou"] == pytest.approx(summary["metrics"]["voc21/miou"], abs=1e-9)
    assert explained["settings"] in capsys.readouterr().out.splitlines()
    for row in explained["mistakes"]:
        assert row["cost"] == pytest.approx(explained["miou"] - row["miou"])


def test_a_number_on_the_command_line(
    config: EvaluateConfig, explained: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    [planted] = [row["miou"] for row in explained["mistakes"] if row["name"] == "BGR"]
    command = f"evaluate --checkpoint {config.checkpoint} --root {config.root} --benchmark voc21 --protocol model"
    command += f" --precision float32 --out {config.out}/cli --explain --explain-images 10"
    assert main([*command.split(), "--explain-found", f"{planted:.2f}", "--json"]) == 0
    *shown, last = capsys.readouterr().out.splitlines()
    result = json.loads(last)
    assert result["found"]["nearest"][0]["name"] == "BGR"
    assert result == json.loads((Path(config.out) / "cli/explanation.json").read_text())
    timing = ("seconds", "found")
    assert {k: v for k, v in result.items() if k not in timing} == {
        k: v for k, v in explained.items() if k not in timing
    }, "one worker gives the same numbers as two"
    rows = [line for line in shown if "  blue, green, red  " in line]
    assert rows and rows[0].startswith("BGR ") and f" {planted:.2f} " in rows[0]
    assert shown[-1] == result["found"]["says"][-1] and "BGR" in shown[-1]


def test_a_sample_is_drawn_by_its_seed(config: EvaluateConfig, explained: dict[str, Any]) -> None:
    small = dataclasses.replace(config, explain=True, explain_images=2, explain_found=20.0)
    first, other = (explain(dataclasses.replace(small, explain_seed=seed)) for seed in (1, 2))
    assert (first["num_images"], first["of_num_images"]) == (2, 10)
    assert len({first["miou"], other["miou"], explained["miou"]}) == 3
    assert "all 10" in first["found"]["says"][-1] and "--explain-expected" in first["found"]["says"][-1]


def test_standard_errors_are_those_of_samples(explained: dict[str, Any]) -> None:
    """A mistake that shifts each image by nearly the same is known better than one that depends on the image."""
    errors = {row["name"]: row["standard_error"] for row in explained["mistakes"]}
    assert 0 < errors["ignored as errors"] < errors["square"]


@pytest.mark.parametrize("rules", [RULES, unified_protocol(), dataclasses.replace(RULES, window=None, antialias=True)])
@pytest.mark.parametrize("open_voc", [open_voc21, open_voc20])
def test_every_protocol_has_its_mistakes(rules: SegmentationConfig, open_voc: Any, config: Any) -> None:
    dataset = open_voc(config.root)
    if not dataset.has_background:
        rules = dataclasses.replace(rules, background_threshold=None)
    right = Variant(segmentation=rules, words=dataset.words)
    mistakes = mistakes_of(right, dataset, contrasting_model().config.image)
    assert len({mistake.name for mistake in mistakes}) == len(mistakes) >= 20
    assert all(mistake.mistaken != mistake.right for mistake in mistakes)
    assert any("threshold" in mistake.name for mistake in mistakes) == dataset.has_background


COSTS = {"a": (4.0, 0.5), "b": (4.05, 0.5), "c": (9.0, 2.0)}


def says(**given: Any) -> str:
    arguments = {"found": 46.0, "expected": None, "num_images": 50, "num_all": 50} | given
    return "\n".join(nearest(50.0, COSTS, **arguments)["says"])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, ["These fit, and the number cannot tell them apart, nearest first: a, b"]),
        ({"found": 41.0}, ["The mistake that fits: c (0.00 off)"]),
        ({"found": 50.04}, [f"It is the protocol's number: {PROTOCOL} fits"]),
        ({"found": 43.0}, ["No mistake of the list fits alone, the nearest are c (2.00 off), b", "two at once"]),
        (
            {"found": 52.0},
            ["52.0 is 2.00 points above the right 50.00.", "No mistake", f"nearest are {PROTOCOL} (2.00 off)"],
        ),
        ({"num_all": 1449}, ["the same 50 images", "all 1,449", "--explain-images None"]),
        (
            {"found": 42.3, "expected": 52.3, "num_all": 1449},
            ["42.3 is 10.00 points below the right 52.30. The mistake that fits: c"],
        ),
        ({"found": 46.0, "expected": 55.0}, ["The mistake that fits: c (0.00 off)"]),
        ({"found": 50.9, "expected": 55.0}, ["nearest first: b, a"]),
    ],
)
def test_what_is_said_of_a_number(given: dict[str, Any], told: Sequence[str]) -> None:
    text = says(**given)
    assert not [part for part in told if part not in text], text
    assert ("--explain-images None" in text) == ("num_all" in given and "expected" not in given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--explain --explain-found 420", "explain_found=420.0 is not an mIoU in percent: give a number from 0 to 100"),
        ("--explain --explain-found nan", "explain_found=nan is not an mIoU in percent"),
        ("--explain --explain-found -1", "explain_found=-1.0 is not an mIoU in percent"),
        ("--explain --explain-found much", "--explain-found"),
        ("--explain-found 42", "explain_found=42.0 is for --explain: add it"),
        ("--explain --explain-expected 52", "explain_expected=52.0 is to be compared with a number: give --explain-f"),
        ("--explain --explain-images 0", "explain_images=0 is too small"),
        ("--explain --benchmark imagenet", "benchmark=imagenet, which has no masks"),
        ("--explain --benchmark all", "benchmark=all, which is several benchmarks"),
        ("--explain --no-grouping True", "explain=True with no_grouping=True: leave one of them out"),
        ("--explain --mlflow-run 0123", "mlflow_run=0123: costs are not logged"),
        ("--explain --benchmark voc21 --root nowhere", "does not hold voc21"),
    ],
)
def test_what_the_user_got_wrong(options: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(f"evaluate --checkpoint nowhere --root nowhere {options}".split()) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_sample_without_labels_is_refused(config: EvaluateConfig, tmp_path: Path) -> None:
    ignored = dataclasses.replace(PHOTOS[0], labels=png(np.full(PHOTOS[0].values.shape, 255, np.uint8)))
    root = write_voc(tmp_path / "voc", [ignored])
    with pytest.raises(ValueError, match="all pixels of the sample are ignored"):
        explain(dataclasses.replace(config, root=str(root), explain=True))
