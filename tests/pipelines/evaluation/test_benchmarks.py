"""Every benchmark through the real evaluation, on miniatures of real photos, against numbers computed without it."""

import contextlib
import csv
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mlflow import MlflowClient

from groupvit.checkpoint import load
from groupvit.config import SegmentationConfig
from groupvit.decode import decode_image
from groupvit.finishing import to_tensor
from groupvit.tokenizer import Tokenizer
from groupvit.transforms import center_crop
from groupvit.windows import encode_views
from pipelines.benchmarks.class_lists import read_imagenet_classes
from pipelines.benchmarks.names import BenchmarkName
from pipelines.cli.main import main
from pipelines.evaluation.config import EvaluateConfig
from pipelines.evaluation.evaluate import evaluate
from tests.support.independent_scores import NUM_CLASSES, mean_iou, numbers, read_predictions, read_truths
from tests.support.independent_scores import confusion as counted
from tests.support.miniatures import (
    Photo,
    write_ade20k,
    write_cityscapes,
    write_coco,
    write_context,
    write_imagenet,
    write_voc,
)
from tests.support.small_checkpoint import write_small_checkpoint

pytestmark = pytest.mark.usefixtures("cluster")

NUM_CPUS = 3
REAL = Path(__file__).parents[4] / "shared/real"
"""Photographs that are not ours to ship: where they lie beside the repository, they are evaluated, too."""
WHOLE = SegmentationConfig(short_side=128, window=None)
WITH_BACKGROUND = {"voc21": 0.95, "context60": 0.35, "coco-object": 0.95}
"""Benchmark → background threshold of the paper's protocol."""
SLIDING = SegmentationConfig(short_side=128, window=64, stride=32)
"""15 windows for a photo of 500 x 375."""


@pytest.fixture(scope="module")
def checkpoint(photos: list[Photo], tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_small_checkpoint(tmp_path_factory.mktemp("checkpoints") / "taught", photos)


@pytest.fixture(scope="module")
def root(photos: list[Photo], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All benchmarks in one folder, as one would keep them."""
    folder = tmp_path_factory.mktemp("benchmarks")
    for write in (write_voc, write_context, write_ade20k):
        write(folder, photos)
    write_coco(folder / "coco", photos)
    write_cityscapes(folder / "cityscapes", photos)
    return folder


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """What an evaluation of all benchmarks left behind."""

    out: Path
    result: dict[str, Any]
    printed: str


@pytest.fixture(scope="module", params=["paper", "unified"])
def evaluated(
    request: pytest.FixtureRequest, checkpoint: str, root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Evaluated:
    out, printed = tmp_path_factory.mktemp("evaluation") / request.param, io.StringIO()
    config = EvaluateConfig(
        checkpoint=checkpoint,
        root=str(root),
        benchmark="all",
        protocol=request.param,
        out=str(out),
        num_workers=2,
        precision="float32",  # what the oracle below computes in
        num_pictures=1,
    )
    with contextlib.redirect_stdout(printed):
        result = evaluate(config)
    return Evaluated(out, result, printed.getvalue())


def assert_numbers_are_right(summary: dict[str, Any], out: Path, root: Path, benchmark: str) -> None:
    """The summary's numbers are those of the saved predictions and the raw label files."""
    predictions = read_predictions(out)
    right = numbers(read_truths(root, benchmark), predictions, NUM_CLASSES[benchmark])
    metrics = summary["metrics"]
    assert len(predictions) == summary["num_scenes"]
    assert metrics[f"{benchmark}/miou"] == pytest.approx(right.miou, abs=1e-9)
    assert metrics[f"{benchmark}/pixel_accuracy"] == pytest.approx(right.pixel_accuracy, abs=1e-9)
    assert metrics[f"{benchmark}/boundary_miou"] == pytest.approx(right.boundary_miou, abs=1e-9)
    class_iou = list(summary["class_iou"][benchmark].values())
    assert len(class_iou) == len(right.class_iou)
    assert class_iou == [value if value is None else pytest.approx(value, abs=1e-3) for value in right.class_iou]


@pytest.mark.parametrize("benchmark", list(NUM_CLASSES))
def test_the_numbers_are_those_of_predictions_and_raw_label_files(
    benchmark: str, evaluated: Evaluated, root: Path
) -> None:
    out, summary = evaluated.out / benchmark, evaluated.result["benchmarks"][benchmark]
    assert_numbers_are_right(summary, out, root, benchmark)
    assert json.loads((out / "metrics.json").read_text()) == summary
    used = np.unique(np.concatenate([found.ravel() for found in read_predictions(out).values()]))
    assert len(used) >= 3, "a model that finds one class only shows little"
    assert summary["metrics"][f"{benchmark}/pixel_accuracy"] > 0


def test_the_groups_allow_more_than_the_words_find(evaluated: Evaluated) -> None:
    """Of benchmarks with a background. Where pixels are ignored a label may spread for free, and the oracle, which
    labels each group by its IoU in its own window, is not an upper bound."""
    for benchmark in WITH_BACKGROUND:
        metrics = evaluated.result["benchmarks"][benchmark]["metrics"]
        assert metrics[f"{benchmark}/oracle_miou"] > metrics[f"{benchmark}/miou"]


@torch.inference_mode()
def test_the_oracle_is_that_of_a_loop(evaluated: Evaluated, checkpoint: str, root: Path) -> None:
    model, total = load(checkpoint), np.zeros((21, 21), dtype=int)
    files = sorted((root / "VOCdevkit/VOC2012/JPEGImages").iterdir())
    for file, truth in zip(files, read_truths(root, "voc21"), strict=True):
        [[view]] = encode_views(model, [decode_image(file.read_bytes())], SegmentationConfig())
        places = [
            ((torch.arange(new) + 0.5) * old / new).long() for old, new in zip(truth.shape, view.size, strict=True)
        ]
        seen, scores = torch.from_numpy(truth)[places[0]][:, places[1]], torch.zeros(21, *view.size)
        times = torch.zeros(view.size)
        for window in view.windows:
            top, bottom, left, right = window.box
            part = seen[top:bottom, left:right]
            maps = F.interpolate(window.group_maps[-1][None], size=part.shape, mode="bilinear", align_corners=False)
            owners = maps[0].argmax(dim=0)
            for group in range(len(maps[0])):
                own = owners == group
                ious = [
                    float((own & (part == label)).sum() / (((own & (part >= 0)) | (part == label)).sum() + 1e-9))
                    for label in range(21)
                ]
                scores[int(np.argmax(ious)), top:bottom, left:right] += own
            times[top:bottom, left:right] += 1
        found = F.interpolate((scores / times)[None], size=truth.shape, mode="bilinear", align_corners=False)[0]
        counted = truth >= 0
        np.add.at(total, (truth[counted], found.argmax(dim=0).numpy()[counted]), 1)
    hits, union = total.diagonal(), total.sum(axis=0) + total.sum(axis=1) - total.diagonal()
    oracle = 100 * np.mean(hits[union > 0] / union[union > 0])
    metrics = evaluated.result["benchmarks"]["voc21"]["metrics"]
    assert metrics["voc21/oracle_miou"] == pytest.approx(oracle, abs=0.02)


def test_each_benchmark_is_segmented_by_its_protocol(evaluated: Evaluated) -> None:
    for name, summary in evaluated.result["benchmarks"].items():
        rules, paper = summary["segmentation"], summary["protocol"] == "paper"
        assert (rules["short_side"], rules["max_long_side"], rules["window"], rules["stride"]) == (448, 2048, 448, 224)
        assert rules["templates"] == ["a photo of a {}."] and rules["pamr_iterations"] is None
        assert rules["top_classes"] == (5 if paper else None)
        assert rules["background_rule"] == ("below_threshold" if paper else "constant")
        threshold = None if name not in WITH_BACKGROUND else WITH_BACKGROUND[name] if paper else 0.5
        assert summary["background_thresholds"] == {"groups": threshold}


def test_all_has_a_summary_each_and_a_table(evaluated: Evaluated, root: Path) -> None:
    result, lines = evaluated.result, evaluated.printed.splitlines()
    assert set(result["benchmarks"]) == set(NUM_CLASSES)
    assert set(result["left_out"]) == {"scenes", "folder"} and "it has no scenes.json" in result["left_out"]["scenes"]
    assert "classes.txt does not exist" in result["left_out"]["folder"]
    header = next(index for index, line in enumerate(lines) if line.startswith("benchmark  "))
    rows = {line.split()[0]: line for line in lines[header + 2 : header + 2 + len(NUM_CLASSES)]}
    for name, summary in result["benchmarks"].items():
        assert f" {summary['metrics'][f'{name}/miou']:.2f}" in rows[name]
        assert f" 3 of {summary['official_num_images']:,} " in rows[name]
    assert any(line.startswith("left out: scenes:") for line in lines)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"protocol": "unified", "pamr": True}, {"pamr_iterations": 10, "background_threshold": 0.4}),
        ({"protocol": "paper", "templates": "full"}, {"pamr_iterations": None, "background_threshold": 0.95}),
    ],
)
def test_options_of_the_protocols(
    fields: dict[str, Any], expected: dict[str, Any], checkpoint: str, root: Path, tmp_path: Path
) -> None:
    config = EvaluateConfig(
        checkpoint=checkpoint, root=str(root), benchmark="voc21", out=str(tmp_path), max_scenes=1, num_pictures=0
    )
    summary = evaluate(dataclasses.replace(config, **fields))
    rules = summary["segmentation"]
    assert expected.items() <= rules.items()
    assert len(rules["templates"]) == (80 if "templates" in fields else 1)
    assert not summary["published"], "numbers of other images do not compare"
    assert (summary["num_images"], summary["official_num_images"]) == (1, 1449)
    assert_numbers_are_right(summary, tmp_path, root, "voc21")


@pytest.mark.skipif(not REAL.is_dir(), reason="there are no photographs in ../shared/real")
@pytest.mark.parametrize(
    ("benchmark", "label_files", "num_images"),
    [
        ("voc21", "VOCdevkit/VOC2012/SegmentationClass/*.png", 223),
        ("coco-stuff", "coco_stuff164k/annotations/val2017/*.png", 21),
        ("ade20k", "ADEChallengeData2016/annotations/validation/*.png", 3),
        ("cityscapes", "cityscapes/gtFine/val/*/*_gtFine_labelIds.png", 1),
    ],
)
def test_real_photographs_are_counted_as_their_label_files_say(
    benchmark: BenchmarkName, label_files: str, num_images: int, checkpoint: str, tmp_path: Path
) -> None:
    config = EvaluateConfig(
        checkpoint=checkpoint,
        root=str(REAL),
        benchmark=benchmark,
        out=str(tmp_path),
        protocol="unified",
        num_pictures=0,
    )
    summary = evaluate(config, SLIDING if num_images == 1 else WHOLE)
    files = dict(enumerate(sorted(REAL.glob(label_files))))
    predictions = read_predictions(tmp_path)
    assert len(predictions) == summary["num_images"] == num_images < summary["official_num_images"]
    right = counted(files, predictions, benchmark)
    rows = list(csv.reader((tmp_path / f"confusion_{benchmark}.csv").read_text().splitlines()))[1:]
    np.testing.assert_array_equal(np.array([row[1:] for row in rows], dtype=int), right)
    assert summary["metrics"][f"{benchmark}/miou"] == pytest.approx(mean_iou(right), abs=1e-9)
    assert np.count_nonzero(right.sum(axis=0)) >= 3, "a model that finds one class only shows little"


@pytest.fixture(scope="module")
def sliding(checkpoint: str, root: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The confusion matrix of one worker that takes one window at a time."""
    return confusion(1, 1, checkpoint, root, tmp_path_factory.mktemp("sliding"))


def confusion(num_workers: int, batch_size: int, checkpoint: str, root: Path, out: Path) -> str:
    config = EvaluateConfig(checkpoint=checkpoint, root=str(root), benchmark="voc21", out=str(out), num_pictures=0)
    evaluate(dataclasses.replace(config, num_workers=num_workers, batch_size=batch_size), SLIDING)
    return (out / "confusion_voc21.csv").read_text()


@pytest.mark.parametrize(
    ("num_workers", "batch_size"),
    [(1, 8), (2, 1), (3, 8), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in ((2, 8), (3, 1)))],
)
def test_any_number_of_workers_and_any_batch_size_count_the_same_pixels(
    num_workers: int, batch_size: int, sliding: str, checkpoint: str, root: Path, tmp_path: Path
) -> None:
    assert confusion(num_workers, batch_size, checkpoint, root, tmp_path) == sliding
    matrix = np.array([row[1:] for row in csv.reader(sliding.splitlines())][1:], dtype=int)
    assert matrix.sum() > 400_000 and np.count_nonzero(matrix.sum(axis=0)) >= 3


def test_benchmarks_that_are_not_there_are_left_out_with_the_reason(
    checkpoint: str, photos: list[Photo], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_ade20k(tmp_path / "root", photos)
    write_cityscapes(tmp_path / "root", photos)
    (tmp_path / "root/VOCdevkit/VOC2010/JPEGImages").mkdir(parents=True)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(uri)
    run = client.create_run(client.create_experiment("evaluation", artifact_location=str(tmp_path / "artifacts")))
    options = f"--checkpoint {checkpoint} --root {tmp_path}/root --out {tmp_path}/out --max-scenes 1 --num-pictures 0"
    options += f" --mlflow-run {run.info.run_id} --tracking-uri {uri}"
    assert main(f"evaluate --benchmark all {options} --json".split()) == 0
    printed = capsys.readouterr().out.splitlines()
    result = json.loads(printed[-1])
    assert set(result["benchmarks"]) == {"cityscapes", "ade20k"}
    assert set(result["left_out"]) == {*NUM_CLASSES, "scenes", "folder"} - {"cityscapes", "ade20k"}
    assert "VOC2012" in result["left_out"]["voc21"] and "prepare-context" in result["left_out"]["context59"]
    told = [line for line in printed if line.startswith("left out: ")]
    assert told == [f"left out: {name}: {reason}" for name, reason in result["left_out"].items()]
    logged = client.get_run(run.info.run_id).data.metrics
    for name, summary in result["benchmarks"].items():
        assert logged[f"evaluation/{name}/miou"] == pytest.approx(summary["metrics"][f"{name}/miou"])
        assert logged[f"evaluation/{name}/num_images"] == 1
        assert logged[f"evaluation/{name}/official_num_images"] == {"cityscapes": 500, "ade20k": 2000}[name]
        file = client.download_artifacts(run.info.run_id, f"evaluation/{name}/metrics.json", str(tmp_path))
        assert json.loads(Path(file).read_text()) == summary


@torch.inference_mode()
def test_imagenet(checkpoint: str, photos: list[Photo], tmp_path: Path) -> None:
    folder, model = write_imagenet(tmp_path / "root", photos, 8), load(checkpoint)
    files = sorted(folder.rglob("*.JPEG"))
    pixels = [to_tensor(center_crop(decode_image(file.read_bytes()), 64)) for file in files]
    images = F.normalize(torch.cat([model.encode_image(image[None]).embedding for image in pixels]), dim=-1)
    prompts = [f"a photo of a {name}." for _, name in read_imagenet_classes()]
    ids = torch.from_numpy(Tokenizer()(prompts, model.config.text.context_length).astype(np.int64))
    found = (images @ F.normalize(model.encode_text(ids), dim=-1).T).argsort(dim=-1, descending=True)
    for index, rank in enumerate((0, 1, 2, 0, 9, 9, 4, 0)):  # 3 are right, 3 more among the first 5
        wanted = read_imagenet_classes()[int(found[index, rank])][0]
        target = folder / "val" / wanted / files[index].name
        target.parent.mkdir(exist_ok=True)
        files[index].rename(target)
    config = EvaluateConfig(
        checkpoint=checkpoint,
        root=str(folder),
        benchmark="imagenet",
        out=str(tmp_path / "out"),
        templates="simple",
    )
    summary = evaluate(config)
    assert (summary["num_images"], summary["official_num_images"]) == (8, 50_000)
    assert summary["hits"] == {"top1": 3, "top5": 6}
    assert summary["metrics"] == {"top1": 37.5, "top5": 75.0}
