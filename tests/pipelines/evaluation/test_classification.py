"""Zero-shot classification by real Ray workers, against torchmetrics on logits computed one image at a time."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

from groupvit.captions import TEMPLATE_SETS
from groupvit.checkpoint import save
from groupvit.decode import decode_image
from groupvit.finishing import to_tensor
from groupvit.model import GroupViT
from groupvit.tokenizer import Tokenizer
from groupvit.transforms import center_crop
from pipelines.benchmarks.class_lists import read_imagenet_classes
from pipelines.cli.main import main
from pipelines.evaluation.classification import classify_images
from pipelines.evaluation.config import EvaluateConfig
from tests.support.miniatures import Photo
from tests.support.small_model import enlarge, one_stage_model

pytestmark = pytest.mark.usefixtures("cluster")

NUM_CPUS = 3
NUM_IMAGES = 40
RANKS = (0, 4, 5, 0, 30)
"""What the true class is among the model's guesses, by turns: a fixed share is right first, or among the first 5."""


@pytest.fixture(scope="module")
def model() -> GroupViT:
    model = one_stage_model()
    enlarge(model.parameters())
    return model


@pytest.fixture(scope="module")
def checkpoint(model: GroupViT, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("checkpoints") / "random"
    save(folder, model)
    return str(folder)


@pytest.fixture(scope="module")
def crops(photos: list[Photo]) -> list[bytes]:
    """Pieces of the photos of several sizes, as JPEG files."""
    rng = np.random.default_rng(0)
    files: list[bytes] = []
    for number in range(NUM_IMAGES):
        width, height = (int(side) for side in rng.integers(40, 300, 2))
        with Image.open(io.BytesIO(photos[number % 3].jpeg)) as file:
            left, top = int(rng.integers(file.width - width)), int(rng.integers(file.height - height))
            piece, encoded = file.crop((left, top, left + width, top + height)), io.BytesIO()
        piece.save(encoded, format="JPEG")
        files.append(encoded.getvalue())
    return files


@torch.inference_mode()
def logits_of(model: GroupViT, crops: list[bytes], templates: tuple[str, ...]) -> Tensor:
    """[N, 1000], each image and each class on its own, by the definition of the method."""
    rows, tokenizer = [], Tokenizer()
    for _, name in read_imagenet_classes():
        ids = tokenizer([template.format(name) for template in templates], model.config.text.context_length)
        rows.append(model.encode_text(torch.from_numpy(ids.astype(np.int64))).mean(dim=0))
    classes = F.normalize(torch.stack(rows), dim=-1)
    pixels = [to_tensor(center_crop(decode_image(crop), 32)) for crop in crops]
    images = torch.cat([model.encode_image(image[None]).embedding for image in pixels])
    return F.normalize(images, dim=-1) @ classes.T


def write_labelled(folder: Path, crops: list[bytes], labels: list[int]) -> str:
    folder.mkdir()
    table = pa.table({"image": crops, "label": labels})
    pq.write_table(table, folder / "validation-00000-of-00001.parquet", row_group_size=7)
    return str(folder)


@pytest.mark.parametrize("templates", ["simple", "subset"])
def test_equal_to_torchmetrics_for_any_number_of_workers(
    templates: Any, model: GroupViT, checkpoint: str, crops: list[bytes], tmp_path: Path
) -> None:
    logits = logits_of(model, crops, TEMPLATE_SETS[templates])
    order = logits.argsort(dim=-1, descending=True)
    labels = torch.stack([order[index, RANKS[index % len(RANKS)]] for index in range(NUM_IMAGES)])
    assert len(set(order[:, 0].tolist())) > 3, "the model must tell images apart, or this shows little"
    expected = {
        f"top{k}": 100 * float(MulticlassAccuracy(1000, top_k=k, average="micro")(logits, labels)) for k in (1, 5)
    }
    assert expected == pytest.approx({"top1": 40.0, "top5": 60.0})
    root = write_labelled(tmp_path / "data", crops, labels.tolist())
    results = []
    for num_workers in (1, 3):
        out = tmp_path / f"out{num_workers}"
        config = EvaluateConfig(
            checkpoint=checkpoint,
            root=root,
            out=str(out),
            templates=templates,
            num_workers=num_workers,
            batch_size=4,
            precision="float32",
        )
        summary = classify_images(config)
        assert json.loads((out / "metrics.json").read_text()) == summary
        assert summary["metrics"] == pytest.approx(expected)
        assert summary["num_images"] == NUM_IMAGES and summary["hits"] == {"top1": 16, "top5": 24}
        results.append(({k: v for k, v in summary.items() if "second" not in k}, (out / "per_class.csv").read_text()))
    assert results[0] == results[1]
    rows = list(csv.DictReader(io.StringIO(results[0][1])))
    assert len(rows) == 1000 and rows[0]["class"] == "tench"
    images = np.bincount(labels.numpy(), minlength=1000)
    assert [int(row["images"]) for row in rows] == images.tolist()
    first = np.bincount(labels[order[:, 0] == labels].numpy(), minlength=1000)
    assert [int(row["top1_hits"]) for row in rows] == first.tolist()


def test_templates_are_those_of_clip() -> None:
    assert [len(TEMPLATE_SETS[name]) for name in ("simple", "subset", "full")] == [1, 7, 80]
    assert set(TEMPLATE_SETS["simple"] + TEMPLATE_SETS["subset"]) <= set(TEMPLATE_SETS["full"])


def test_a_damaged_image_ends_the_evaluation_and_is_named(checkpoint: str, crops: list[bytes], tmp_path: Path) -> None:
    root = write_labelled(tmp_path / "data", [*crops[:9], crops[9][:300]], list(range(10)))
    config = EvaluateConfig(checkpoint=checkpoint, root=root, out=str(tmp_path / "out"), templates="simple")
    with pytest.raises(ValueError, match=r"row 2 of .*parquet: .*cannot be decoded"):
        classify_images(config)
    assert not (tmp_path / "out").exists()


def test_more_workers_than_there_is_room_for_are_refused(checkpoint: str, crops: list[bytes], tmp_path: Path) -> None:
    root = write_labelled(tmp_path / "data", crops[:1], [0])
    with pytest.raises(ValueError, match=r"num_workers=4 .* give at most 3"):
        classify_images(EvaluateConfig(checkpoint=checkpoint, root=root, num_workers=4))
    with pytest.raises(ValueError, match="neither a checkpoint nor a run"):
        classify_images(EvaluateConfig(checkpoint=str(tmp_path), root=root))


@pytest.mark.parametrize("field", ["batch_size", "num_workers", "cpus_per_worker"])
def test_counts_below_one_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field}=0 is too small"):
        EvaluateConfig(checkpoint="x", root="x", **{field: 0})  # pyright: ignore[reportArgumentType]


def test_unknown_templates_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--checkpoint", "x", "--root", "x", "--benchmark", "imagenet", "--templates", "all"]) == 2
    shown = capsys.readouterr().err
    assert "invalid choice 'all' for argument '--templates'" in shown and all(name in shown for name in TEMPLATE_SETS)
