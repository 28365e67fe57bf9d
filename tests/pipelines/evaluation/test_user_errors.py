"""What `groupvit evaluate` says of a benchmark or a checkpoint that cannot be used: one line, exit code 2."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image

from groupvit.checkpoint_files import read_state
from pipelines.cli.main import main
from tests.support.edited_checkpoint import edit_state
from tests.support.image_files import png, png_that_promises
from tests.support.miniatures import Photo, write_voc
from tests.support.small_checkpoint import write_small_checkpoint

pytestmark = pytest.mark.usefixtures("cluster")

NUM_CPUS = 2
NAME = "2011_000006"
IMAGE, LABELS = f"VOCdevkit/VOC2012/JPEGImages/{NAME}.jpg", f"VOCdevkit/VOC2012/SegmentationClass/{NAME}.png"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_small_checkpoint(tmp_path_factory.mktemp("checkpoints") / "random")


def run(options: str, root: Path, checkpoint: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code, and the line that begins with "groupvit: error:", which must be the last and stand alone."""
    code = main(f"evaluate --checkpoint {checkpoint} --root {root} --out {root}/out --num-pictures 0 {options}".split())
    errors = capsys.readouterr().err.splitlines()
    assert not any("Traceback" in line for line in errors)
    if code == 0:
        return code, ""
    assert [line for line in errors if line.startswith("groupvit: error: ")] == errors[-1:]
    assert "object at 0x" not in errors[-1]
    assert all("images of the official list" in line for line in errors[:-1])
    assert not (root / "out/metrics.json").exists()
    return code, errors[-1]


def test_an_mlflow_run_that_cannot_be_written_to_is_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(uri)
    run_id = client.create_run(client.create_experiment("evaluations"), run_name="mine").info.run_id
    client.set_terminated(run_id, "FAILED")
    options = f"--tracking-uri {uri} --mlflow-run "
    capsys.readouterr()  # MLflow tells that it has made a database
    # The next check fails: there are no scenes.
    assert run_id not in run(options + run_id, tmp_path, "nowhere", capsys)[1]
    found = client.get_run(run_id)
    assert (found.info.run_name, found.info.status) == ("mine", "FAILED")

    client.delete_run(run_id)
    code, line = run(options + run_id, tmp_path, "nowhere", capsys)
    assert code == 2 and f"run {run_id} was deleted: " in line and f"mlflow runs restore --run-id {run_id}`" in line
    code, line = run(options + "0" * 32, tmp_path, "nowhere", capsys)
    assert code == 2 and f"Run with id={'0' * 32} not found" in line


def with_value(content: bytes, value: int) -> bytes:
    """The label file with one pixel of this value."""
    values = np.zeros((375, 500), np.uint8)
    values[0, 0] = value
    return png(values)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            LABELS,
            lambda content: with_value(content, 77),
            f"{NAME}.png: holds the value 77, which is not a class of voc21",
        ),
        (LABELS, lambda content: b"not a picture", f"{NAME}.png: cannot be decoded as an image"),
        (LABELS, lambda content: content[: len(content) // 2], f"{NAME}.png: cannot be decoded as an image"),
        (LABELS, lambda _: png_that_promises(20_000, 20_000), f"{NAME}.png: cannot be decoded as an image (Image size"),
        (IMAGE, lambda content: content[: len(content) // 2], f"{NAME}.jpg: image: cannot be decoded"),
        (IMAGE, lambda content: b"", f"{NAME}.jpg: image: cannot be decoded"),
        (IMAGE, lambda _: png_that_promises(20_000, 20_000), f"{NAME}.jpg: image: "),
    ],
    ids=["value", "no picture", "half a label file", "huge label file", "half an image", "empty image", "huge image"],
)
def test_files_that_cannot_be_used_are_named(
    file: str,
    change: Callable[[bytes], bytes],
    message: str,
    checkpoint: str,
    photos: list[Photo],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = write_voc(tmp_path / "root", photos)
    (root / file).write_bytes(change((root / file).read_bytes()))
    code, error = run("--benchmark voc21", root, checkpoint, capsys)
    assert code == 2 and message in error and len(error) < 500


def test_an_image_of_one_row_is_scored(
    checkpoint: str, photos: list[Photo], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_voc(tmp_path / "root", photos)
    Image.fromarray(np.zeros((1, 500, 3), np.uint8)).save(root / IMAGE)
    (root / LABELS).write_bytes(png(np.zeros((1, 500), np.uint8)))
    assert run("--benchmark voc21", root, checkpoint, capsys) == (0, "")
    with Image.open(root / "out/predictions/000001.png") as prediction:
        assert prediction.size == (500, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--benchmark nosuch", "invalid choice 'nosuch' for argument '--benchmark'. Expected one of ('scenes', "),
        ("--benchmark vocc21", "invalid choice 'vocc21' for argument '--benchmark'. Expected one of ('scenes', "),
        ("--benchmark voc21 --protocol nosuch", "nosuch"),
        ("--benchmark voc21 --templates nosuch", "nosuch"),
        ("--benchmark voc21 --pamr", "pamr=True belongs to the unified protocol: add --protocol unified"),
        ("--benchmark voc21 --pamr --protocol paper", "pamr=True belongs to the unified protocol"),
        ("--benchmark voc21 --batch-size 0", "batch_size=0 is too small"),
        ("--benchmark voc21 --calibration x", "calibration=x is for scenes"),
        ("--benchmark ade20k", "does not hold ade20k: none of"),
        ("--benchmark context60", "does not hold context60: none of"),
        ("--benchmark imagenet", "does not hold ImageNet's validation images"),
        ("--benchmark scenes", "is not a scenes folder"),
        ("--benchmark voc21 --num-workers 7", "num_workers=7 with 1 CPU each needs 7 CPUs"),
    ],
)
def test_options_that_cannot_be_met(
    options: str,
    message: str,
    checkpoint: str,
    photos: list[Photo],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, error = run(options, write_voc(tmp_path / "root", photos), checkpoint, capsys)
    assert code == 2 and message in error


def test_half_a_data_set(
    checkpoint: str, photos: list[Photo], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_voc(tmp_path / "root", photos)
    (root / LABELS).unlink()
    code, error = run("--benchmark voc21", root, checkpoint, capsys)
    assert code == 2 and f"1 of 3 label files of voc21 are missing, the first is SegmentationClass/{NAME}.png" in error


def test_a_root_without_any_benchmark(checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, error = run("--benchmark all", tmp_path, checkpoint, capsys)
    assert code == 2 and f"root={tmp_path} holds no benchmark; of the first: " in error and "VOC2012" in error


def no_checkpoint(folder: Path) -> None:
    (folder / "state.json").unlink()


def other_json(folder: Path) -> None:
    (folder / "state.json").write_text('{"epoch": 3}')


def newer(folder: Path) -> None:
    edit_state(folder, format_version=99)


def half_the_weights(folder: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def wrong_type(folder: Path) -> None:
    model = read_state(folder)["model"]
    edit_state(folder, model=model | {"image": model["image"] | {"width": "wide"}})


def no_version(folder: Path) -> None:
    edit_state(folder, format_version="one")


def odd_segmentation(folder: Path) -> None:
    edit_state(folder, config={"segmentation": {"window_size": 3}})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_checkpoint, "neither a checkpoint nor a run with one"),
        (other_json, "is not a checkpoint"),
        (newer, "format_version=99, newer than 1"),
        (half_the_weights, "model.safetensors is corrupted"),
        (no_weights, "model.safetensors"),
        (wrong_type, "state.json is corrupted"),
        (no_version, "state.json is corrupted (format_version is not a number)"),
        (odd_segmentation, "SegmentationConfig has no field window_size"),
    ],
)
def test_checkpoints_that_cannot_be_used(
    damage: Callable[[Path], None],
    message: str,
    photos: list[Photo],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, folder = write_voc(tmp_path / "root", photos), Path(write_small_checkpoint(tmp_path / "checkpoint"))
    damage(folder)
    code, error = run("--benchmark voc21 --protocol model", root, str(folder), capsys)
    assert code == 2 and message in error
