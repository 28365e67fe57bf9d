"""Evaluation by real Ray workers, on real files, against torchmetrics on the predictions it saves."""

import csv
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassJaccardIndex

from groupvit.checkpoint import load, save
from groupvit.config import SegmentationConfig
from groupvit.metrics import confusion_matrix, segmentation_metrics
from groupvit.protocols import protocol_of
from groupvit.segmentation import predict
from groupvit.tokenizer import Tokenizer
from groupvit.zero_shot import class_embeddings
from pipelines.benchmarks.scenes import open_scenes
from pipelines.comparison.compare import compare
from pipelines.comparison.config import CompareConfig
from pipelines.evaluation.config import EvaluateConfig
from pipelines.evaluation.evaluate import evaluate
from pipelines.evaluation.methods import CANDIDATE_THRESHOLDS
from tests.support.scenes_folder import CLASSES, write_scenes
from tests.support.small_model import distinct_model

pytestmark = pytest.mark.usefixtures("cluster")

NUM_CPUS = 3
WHOLE = SegmentationConfig(short_side=64, window=None, background_threshold=0.12)
NUM_SCENES = 40


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("checkpoints") / "random"
    save(folder, distinct_model())
    return str(folder)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_scenes(tmp_path_factory.mktemp("scenes") / "validation", NUM_SCENES))


@pytest.fixture(scope="module")
def evaluated(checkpoint: str, scenes: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("evaluation") / "out"
    config = EvaluateConfig(
        checkpoint=checkpoint, root=scenes, out=str(out), no_grouping=True, num_pictures=3, batch_size=1
    )
    return out, evaluate(config, WHOLE)


def read_confusion(out: Path, part: str) -> np.ndarray:
    with (out / f"confusion_{part}.csv").open() as file:
        return np.array([row[1:] for row in csv.reader(file)][1:], dtype=np.int64)


@pytest.mark.parametrize(("num_workers", "batch_size"), [(1, 8), (2, 1), (3, 8)])
def test_the_same_with_any_number_of_workers_and_any_batch_size(
    evaluated: tuple[Path, dict[str, Any]],
    checkpoint: str,
    scenes: str,
    tmp_path: Path,
    num_workers: int,
    batch_size: int,
) -> None:
    first, summary = evaluated
    config = EvaluateConfig(
        checkpoint=checkpoint,
        root=scenes,
        out=str(tmp_path / "out"),
        no_grouping=True,
        num_pictures=3,
        num_workers=num_workers,
        batch_size=batch_size,
    )
    again = evaluate(config, WHOLE)
    timing = {"seconds", "scenes_per_second"}
    assert {k: v for k, v in again.items() if k not in timing} == {k: v for k, v in summary.items() if k not in timing}
    for file in sorted(first.rglob("*")):
        if file.is_file() and file.name != "metrics.json":
            assert file.read_bytes() == (tmp_path / "out" / file.relative_to(first)).read_bytes(), file


def test_equal_to_torchmetrics_on_the_saved_predictions(evaluated: tuple[Path, dict[str, Any]], scenes: str) -> None:
    out, summary = evaluated
    dataset = open_scenes(scenes)
    all_scenes = [scene for block in dataset.blocks(range(NUM_SCENES), 8) for scene in dataset.read(block)]
    for part in ("seen", "unseen"):
        matrix = MulticlassConfusionMatrix(len(CLASSES), ignore_index=255)
        jaccard = MulticlassJaccardIndex(len(CLASSES), ignore_index=255)
        for scene in all_scenes:
            if scene.part == part:
                prediction = np.array(Image.open(out / "predictions" / f"{scene.index:06d}.png"))
                given = (torch.from_numpy(prediction).long().flatten(), torch.from_numpy(scene.mask).long().flatten())
                matrix.update(*given)
                jaccard.update(*given)
        confusion = read_confusion(out, part)
        np.testing.assert_array_equal(confusion, matrix.compute().numpy())
        assert summary["metrics"][f"{part}/miou"] == pytest.approx(100 * float(jaccard.compute()), abs=1e-4)
        assert np.count_nonzero(confusion.sum(axis=0)) > 1, (
            "the model must not predict one class only, or this shows little"
        )


def test_baselines_oracle_and_groups_are_reported(evaluated: tuple[Path, dict[str, Any]]) -> None:
    out, summary = evaluated
    metrics = summary["metrics"]
    confusion = read_confusion(out, "seen")
    share = confusion[0].sum() / confusion.sum()
    assert metrics["seen/all_background_miou"] == pytest.approx(100 * share / len(CLASSES))
    assert metrics["seen/oracle_miou"] > metrics["seen/miou"]
    assert metrics["seen/no_grouping_miou"] != metrics["seen/miou"]
    assert 0 <= metrics["seen/stage_1_group_entropy"] <= math.log(8)
    assert 0 <= metrics["seen/stage_2_group_empty_rate"] < 1
    assert json.loads((out / "metrics.json").read_text()) == summary


def test_labelling_everything_as_one_class_is_beside_its_iou(
    evaluated: tuple[Path, dict[str, Any]], scenes: str
) -> None:
    out, summary = evaluated
    dataset = open_scenes(scenes)
    all_scenes = [scene for block in dataset.blocks(range(NUM_SCENES), 8) for scene in dataset.read(block)]
    truths = torch.cat([torch.from_numpy(scene.mask).long().flatten() for scene in all_scenes if scene.part == "seen"])
    for index, name in enumerate(CLASSES):
        jaccard = MulticlassJaccardIndex(len(CLASSES), average="none", ignore_index=255)
        iou = 100 * float(jaccard(torch.full_like(truths, index), truths)[index])
        assert summary["class_share"]["seen"][name] == pytest.approx(iou, abs=1e-3)
    with (out / "per_class.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["seen everywhere"]) for row in rows] == [
        pytest.approx(share, abs=0.006) for share in summary["class_share"]["seen"].values()
    ]
    for name in ("no_grouping", "oracle", "all_background"):
        ious = [float(row[f"seen {name}"]) for row in rows]
        assert np.mean(ious) == pytest.approx(summary["metrics"][f"seen/{name}_miou"], abs=0.006)


def test_pictures_and_tables_are_written(
    evaluated: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = evaluated
    for part in ("seen", "unseen"):
        with Image.open(out / f"examples_{part}.png") as picture:
            assert picture.width > 1200 and picture.height > 700
        assert (out / f"confusion_{part}.png").stat().st_size > 1000
    table = (out / "per_class.md").read_text()
    assert all(f"| {name} |" in table for name in CLASSES)
    assert len(list((out / "predictions").iterdir())) == NUM_SCENES


def test_the_threshold_is_chosen_on_calibration_scenes(checkpoint: str, scenes: str, tmp_path: Path) -> None:
    calibration = str(write_scenes(tmp_path / "calibration", 12, seed=9))
    config = EvaluateConfig(
        checkpoint=checkpoint, root=scenes, out=str(tmp_path / "out"), calibration=calibration, num_workers=2
    )
    summary = evaluate(config, WHOLE)
    dataset, model = open_scenes(calibration), load(checkpoint)
    classes = class_embeddings(model, Tokenizer(), CLASSES[1:])
    scenes_in_it = [scene for block in dataset.blocks(range(12), 12) for scene in dataset.read(block)]

    def calibration_miou(threshold: float) -> float:
        segmentation = dataclasses.replace(WHOLE, background_threshold=threshold)
        predictions = [predict(model, scene.image, classes, segmentation)[0] for scene in scenes_in_it]
        pairs = zip(scenes_in_it, predictions, strict=True)
        matrices = [confusion_matrix(scene.mask, prediction, len(CLASSES)) for scene, prediction in pairs]
        return segmentation_metrics(np.sum(matrices, axis=0)).mean_iou

    by_threshold = {threshold: calibration_miou(threshold) for threshold in CANDIDATE_THRESHOLDS}
    assert len(set(by_threshold.values())) > 1
    assert by_threshold[summary["background_thresholds"]["groups"]] == max(by_threshold.values())


def test_data_without_background_and_a_subset(checkpoint: str, tmp_path: Path) -> None:
    folder = write_scenes(tmp_path / "scenes", 10, classes=("red square", "green square", "blue square"))
    config = EvaluateConfig(checkpoint=checkpoint, root=str(folder), out=str(tmp_path / "out"), max_scenes=3)
    summary = evaluate(config, WHOLE)
    assert summary["num_scenes"] == 6 and summary["background_thresholds"] == {"groups": None}
    assert "seen/all_background_miou" not in summary["metrics"]


@pytest.mark.parametrize("notice", [None, "For research only."])
def test_results_go_to_an_existing_mlflow_run(notice: str | None, checkpoint: str, scenes: str, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(uri)
    run = client.create_run(client.create_experiment("evaluation", artifact_location=str(tmp_path / "artifacts")))
    if notice is not None:
        save(tmp_path / "licensed", load(checkpoint), state={"license": notice})
    config = EvaluateConfig(
        checkpoint=checkpoint if notice is None else str(tmp_path / "licensed"),
        root=scenes,
        out=str(tmp_path / "out"),
        max_scenes=2,
        mlflow_run=run.info.run_id,
        tracking_uri=uri,
    )
    summary = evaluate(config, WHOLE)
    logged = client.get_run(run.info.run_id).data
    expected = summary["metrics"] | {"scenes/num_images": summary["num_images"]}
    assert logged.metrics == {f"evaluation/{name}": pytest.approx(value) for name, value in expected.items()}
    assert logged.tags.get("groupvit.license") == summary["license"] == notice
    files = {file.path for file in client.list_artifacts(run.info.run_id, "evaluation")}
    assert {"evaluation/examples_seen.png", "evaluation/per_class.md", "evaluation/metrics.json"} <= files


def test_given_words_are_another_protocol_and_stay_apart(
    checkpoint: str, scenes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(uri)
    run = client.create_run(client.create_experiment("words", artifact_location=str(tmp_path / "artifacts")))
    config = EvaluateConfig(
        checkpoint=checkpoint,
        root=scenes,
        max_scenes=4,
        num_pictures=0,
        out=str(tmp_path / "own"),
        precision="float32",
        mlflow_run=run.info.run_id,
        tracking_uri=uri,
    )
    own = evaluate(config, WHOLE)
    words = ("man", "tall woman")
    given = dataclasses.replace(config, words=("red square=" + ",".join(words),), out=str(tmp_path / "given"))
    summary = evaluate(given, WHOLE)
    assert (own["changed_words"], summary["changed_words"]) == ({}, {"red square": list(words)})
    assert own["words"]["red square"] == ["red square"] and summary["words"]["red square"] == list(words)
    assert "red square by the words man/tall woman" in capsys.readouterr().out
    logged = client.get_run(run.info.run_id).data.metrics
    assert logged["evaluation/seen/miou"] == pytest.approx(own["metrics"]["seen/miou"])
    assert logged["evaluation/words/seen/miou"] == pytest.approx(summary["metrics"]["seen/miou"])
    assert own["metrics"]["seen/miou"] != summary["metrics"]["seen/miou"]
    assert "evaluation/words/metrics.json" in {
        file.path for file in client.list_artifacts(run.info.run_id, "evaluation/words")
    }
    compared = compare(CompareConfig(runs=(str(tmp_path / "own"), str(tmp_path / "given"))))
    assert compared["settings"]["words.red square"] == ["['red square']", "['man', 'tall woman']"]

    # The class embedding is the mean over its words, as for the words in classes.txt.
    dataset, model = open_scenes(scenes), load(checkpoint)
    classes = class_embeddings(model, Tokenizer(), [words, *CLASSES[2:]])
    matrix = np.zeros((len(CLASSES), len(CLASSES)), dtype=np.int64)
    for block in dataset.blocks(range(NUM_SCENES), 8):
        for scene in dataset.read(block):
            if f"{scene.index:06d}.png" in {file.name for file in (tmp_path / "given/predictions").iterdir()}:
                matrix += confusion_matrix(scene.mask, predict(model, scene.image, classes, WHOLE)[0], len(CLASSES))
    np.testing.assert_array_equal(
        read_confusion(tmp_path / "given", "seen") + read_confusion(tmp_path / "given", "unseen"), matrix
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"words": ("red square=" + "very " * 30 + "red",)}, "has 31 tokens"),
        ({"words": ("red square=red",), "benchmark": "all"}, "words=.*one benchmark of segmentation"),
        ({"num_workers": 4}, "num_workers=4 with 1 CPU each needs 4 CPUs, and the Ray cluster has 3"),
        ({"gpus_per_worker": 1.0}, "needs 1 GPUs"),
        ({"checkpoint": "/nowhere"}, "/nowhere is neither a checkpoint nor a run"),
        ({"root": "/nowhere"}, "/nowhere is not a scenes folder"),
        ({"num_workers": 0}, "num_workers=0 is too small"),
        ({"background_threshold": 0.5, "calibration": "x"}, "give one of them"),
    ],
)
def test_what_the_user_got_wrong_is_said_in_one_line(
    fields: dict[str, Any], message: str, checkpoint: str, scenes: str, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"checkpoint": checkpoint, "root": scenes, "out": str(tmp_path)}
    with pytest.raises(ValueError, match=message) as caught:
        evaluate(EvaluateConfig(**(given | fields)))
    assert "\n" not in str(caught.value)


def test_a_damaged_scene_is_named_and_not_retried(checkpoint: str, tmp_path: Path) -> None:
    folder = write_scenes(tmp_path / "scenes", 6)
    file = folder / "data" / "00001.parquet"
    rows = pq.read_table(file).to_pylist()
    rows[0]["image"] = rows[0]["image"][:100]
    pq.write_table(pa.Table.from_pylist(rows), file)
    with pytest.raises(ValueError, match=rows[0]["sample_id"]):
        evaluate(EvaluateConfig(checkpoint=checkpoint, root=str(folder), out=str(tmp_path / "out")), WHOLE)


def test_protocols(checkpoint: str) -> None:
    model = load(checkpoint)
    assert protocol_of("paper", model, {}) == SegmentationConfig()
    scaled = protocol_of("model", model, {})
    assert (scaled.short_side, scaled.window, scaled.stride) == (64, 64, 32)
    stored = {"config": {"segmentation": {"short_side": 96, "window": None, "templates": ["{}"]}}}
    assert protocol_of("model", model, stored) == SegmentationConfig(short_side=96, window=None, templates=("{}",))
