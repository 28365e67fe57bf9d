"""Images of one's own: what `groupvit segment` wrote is read as ground truth, and agrees in every pixel."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from groupvit.checkpoint import save
from pipelines.cli.main import main
from pipelines.evaluation.config import EvaluateConfig
from pipelines.evaluation.evaluate import evaluate
from pipelines.serving.formats.catalogue import Format
from pipelines.serving.segment import SegmentConfig, segment
from tests.support.own_folder import KINDS, Kind, write_own_folder
from tests.support.small_model import WORDS, distinct_model

pytestmark = pytest.mark.usefixtures("cluster")

NUM_CPUS = 2
THRESHOLD = 0.25
FORMATS: dict[Kind, Format] = {"labels": "fiftyone", "coco": "coco-rle", "label-studio": "label-studio"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("checkpoints") / "random"
    save(folder, distinct_model(WORDS))
    return str(folder)


def annotated(root: Path) -> None:
    """Every prediction becomes an annotation, as when someone accepts it in Label Studio."""
    tasks = json.loads((root / "label-studio.json").read_text())
    for number, task in enumerate(tasks, start=1):
        regions = [prediction["result"] for prediction in task.pop("predictions")]
        task.update(id=number, annotations=[{"result": result, "was_cancelled": False} for result in regions])
    (root / "label-studio.json").write_text(json.dumps(tasks))


@pytest.mark.parametrize("kind", KINDS)
def test_masks_that_were_segmented_are_right_in_every_pixel(kind: Kind, checkpoint: str, tmp_path: Path) -> None:
    root, rng = tmp_path / "own", np.random.default_rng(3)
    (root / "images/sub").mkdir(parents=True)
    for name, (height, width) in {"a.jpg": (90, 120), "b.png": (64, 200), "sub/c d.jpg": (150, 77)}.items():
        coarse = rng.integers(0, 255, (height // 9, width // 9, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((width, height)).save(root / "images" / name)
    config = SegmentConfig(
        images=(str(root / "images"),),
        checkpoint=checkpoint,
        classes='dog, a "red" <car>, tree',
        out=str(tmp_path / "out"),
        format=FORMATS[kind],
        background_threshold=THRESHOLD,
        precision="float32",
    )
    segment(config)
    for name in ("labels", "coco.json", "label-studio.json"):
        if (tmp_path / "out" / name).exists():
            shutil.move(tmp_path / "out" / name, root / name)
    if kind == "label-studio":
        annotated(root)
    (root / "classes.txt").write_text('background\ndog\na "red" <car>\ntree\n')
    result = evaluate(
        EvaluateConfig(
            checkpoint=checkpoint,
            root=str(root),
            benchmark="folder",
            out=str(tmp_path / "evaluation"),
            background_threshold=THRESHOLD,
            precision="float32",
            num_pictures=1,
        ),
        show=False,
    )
    assert result["protocol"] == "model" and result["num_images"] == 3 and result["official_num_images"] is None
    assert result["metrics"]["folder/miou"] == result["metrics"]["folder/pixel_accuracy"] == pytest.approx(100)
    counts = (tmp_path / "evaluation/confusion_folder.csv").read_text().splitlines()[1:]
    matrix = np.array([[int(count) for count in line.split(",")[-4:]] for line in counts])
    assert matrix.sum() == 90 * 120 + 64 * 200 + 150 * 77 and (np.diag(matrix) > 0).sum() >= 3
    assert (matrix == np.diag(np.diag(matrix))).all()


def test_the_command_reads_it_and_says_in_one_line_what_is_wrong(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_own_folder(tmp_path / "own", "coco")
    command = f"evaluate --checkpoint {checkpoint} --benchmark folder --root {root} --out {tmp_path}/out".split()
    assert main(command) == 0
    assert "folder" in capsys.readouterr().out
    content = json.loads((root / "coco.json").read_text())
    content["annotations"][0]["segmentation"]["counts"] = "1o"
    (root / "coco.json").write_text(json.dumps(content))
    assert main(command) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"groupvit: error: {root}/coco.json: annotation 1 of a.jpg: a mask's run-length encoding")
