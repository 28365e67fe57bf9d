"""The same labels everywhere: `groupvit segment`, Python, transformers, ONNX Runtime, MLflow and HTTP.

All but ONNX Runtime run the same code, and give the same bits. ONNX Runtime sums in another order, so a pixel where two
words score the same but for rounding can get either: some in a million, at edges.
"""

import asyncio
import io
import json
import math
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from mlflow.models import Model
from PIL import Image

from groupvit.checkpoint import load, load_state
from groupvit.protocols import protocol_of
from groupvit.segmenter import Segmenter
from groupvit.tokenizer import Tokenizer
from pipelines.cli.main import main
from pipelines.models.export import ExportConfig, export
from pipelines.models.mlflow_model import saved_model
from pipelines.serving.app.answers import Answer, Question, answer
from pipelines.serving.app.server import PageSettings, pages_app
from tests.support.exits import (
    PROGRAMS,
    ROOT,
    WORDS,
    CleanEnvironment,
    build_wheel,
    differing_pixels,
    label_maps,
    run_outside,
    run_program,
)
from tests.support.miniatures import Photo
from tests.support.running_app import blocks, running
from tests.support.small_checkpoint import write_small_checkpoint

MOST_TIES = 1e-5
"""Largest fraction of the pixels that ONNX Runtime may label otherwise."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(write_small_checkpoint(tmp_path_factory.mktemp("same") / "checkpoint"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn pictures of several shapes, as JPEG and PNG files; one is stored lying on its side."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, size in enumerate([(120, 90), (200, 131), (64, 180), (333, 150)]):
        drawn = blocks(96, 128, seed=number).resize(size, Image.Resampling.BICUBIC)
        _save(drawn, folder / f"{number:02}.{'png' if number == 0 else 'jpg'}", orientation=6 if number == 1 else 1)
    return folder


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory, photos: list[Photo]) -> Path:
    """Twenty crops of photographs, of all shapes."""
    folder = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(0)
    for number in range(20):
        with Image.open(io.BytesIO(photos[number % 3].jpeg)) as photo:
            width, height = random.integers(80, 300, 2).tolist()
            left, top = (int(random.integers(0, most)) for most in (photo.width - width, photo.height - height))
            crop = photo.crop((left, top, left + width, top + height))
        _save(crop, folder / f"{number:02}.{'png' if number % 5 == 0 else 'jpg'}", orientation=6 if number == 4 else 1)
    return folder


def _save(picture: Image.Image, file: Path, *, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    picture.save(file, exif=exif)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    """A folder with a model for each exit."""
    folder = tmp_path_factory.mktemp("exits")
    for to in ("hf-auto", "onnx"):
        export(ExportConfig(checkpoint=str(checkpoint), to=to, out=str(folder / to)))
    with saved_model(checkpoint, Model(), {}) as model:
        model.rename(folder / "mlflow")
    (folder / "python").symlink_to(checkpoint)
    return folder


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, pictures: Path) -> dict[str, np.ndarray]:
    return segmented(checkpoint, pictures, tmp_path_factory.mktemp("segmented") / "out")


@pytest.fixture(scope="module")
def expected_of_photographs(
    tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, photographs: Path
) -> dict[str, np.ndarray]:
    return segmented(checkpoint, photographs, tmp_path_factory.mktemp("segmented") / "out")


def segmented(checkpoint: Path, pictures: Path, out: Path) -> dict[str, np.ndarray]:
    """What `groupvit segment` writes."""
    flags = ["--checkpoint", str(checkpoint), "--classes", ", ".join(WORDS), "--out", str(out)]
    assert main(["segment", str(pictures), *flags]) == 0
    labels = labels_in(out)
    assert len(labels) == len(list(pictures.iterdir()))
    assert any(len(np.unique(one)) > 1 for one in labels.values()), "else this shows little"
    return labels


def labels_in(out: Path) -> dict[str, np.ndarray]:
    """The labels that `groupvit segment` wrote, by the name of the photo."""
    return {folder.name: np.asarray(Image.open(folder / "labels.png")) for folder in sorted(out.iterdir())}


def assert_same(name: str, expected: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> None:
    different = differing_pixels(expected, found)
    limit = math.ceil(MOST_TIES * sum(labels.size for labels in expected.values())) if name == "onnx" else 0
    assert sum(different.values()) <= limit, (name, different)


@pytest.mark.parametrize("name", PROGRAMS)
def test_each_exit_gives_the_same_labels(
    name: str, exported: Path, pictures: Path, expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    if name == "python":
        model = load(exported / name)
        segmenter = Segmenter(model, protocol_of("model", model, load_state(exported / name)), Tokenizer())
        for file in pictures.glob("*.png"):
            found = segmenter.segment(np.asarray(Image.open(file)), WORDS)
            np.testing.assert_array_equal(found.labels, expected[file.stem])
        return
    run_program(name, exported / name, pictures, tmp_path / "out")
    assert_same(name, expected, label_maps(tmp_path / "out"))


def test_http_gives_the_same_labels(checkpoint: Path, pictures: Path, expected: dict[str, np.ndarray]) -> None:
    model = load(checkpoint)
    segmenter = Segmenter(model, protocol_of("model", model, load_state(checkpoint)), Tokenizer())

    async def ask(question: Question) -> Answer:
        return answer(segmenter, question)

    settings = PageSettings(model={}, examples=(), allowed_hosts=("*",), max_image_bytes=10**7, max_at_once=1)

    async def labels_of_all() -> dict[str, np.ndarray]:
        transport = httpx.ASGITransport(app=pages_app(settings, ask))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return {file.stem: _labels(await client.post("/api/labels", **_form(file))) for file in pictures.iterdir()}

    assert_same("http", expected, asyncio.run(labels_of_all()))


def _form(file: Path) -> dict[str, Any]:
    return {"files": {"image": (file.name, file.read_bytes())}, "data": {"words": ", ".join(WORDS)}}


def _labels(response: httpx.Response) -> np.ndarray:
    assert response.status_code == 200, response.text
    assert json.loads(response.headers["groupvit-names"]) == ["background", *WORDS]
    return np.asarray(Image.open(io.BytesIO(response.content)))


@pytest.fixture(scope="module")
def with_torch(tmp_path_factory: pytest.TempPathFactory) -> CleanEnvironment:
    return CleanEnvironment(tmp_path_factory.mktemp("torch") / "venv", "torch==2.14.1", "torchvision==0.29.1")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", PROGRAMS)
def test_each_exit_in_a_clean_environment(
    name: str,
    exported: Path,
    photographs: Path,
    expected_of_photographs: dict[str, np.ndarray],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    constraints = ["-c", str(ROOT / "constraints.txt")]
    torch = None if name == "onnx" else request.getfixturevalue("with_torch")
    if name == "mlflow":
        requirements = ["-r", str(exported / "mlflow/requirements.txt")]
    elif name == "python":
        requirements = [*constraints, str(build_wheel(tmp_path))]
    elif name == "onnx":
        requirements = [*constraints, "numpy", "pillow", "onnxruntime", "tokenizers", "simplejpeg"]
    else:
        requirements = [*constraints, "transformers", "pillow"]
    environment = CleanEnvironment(tmp_path / "venv", *requirements, borrowed=torch)
    run_program(name, exported / name, photographs, tmp_path / "out", environment.python)
    assert_same(name, expected_of_photographs, label_maps(tmp_path / "out"))
    if name == "python":
        flags = ["--checkpoint", str(exported / name), "--classes", ", ".join(WORDS), "--out", "segmented"]
        run_outside(environment.groupvit, "segment", str(photographs), *flags, cwd=tmp_path)
        assert_same("command", expected_of_photographs, labels_in(tmp_path / "segmented"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_app_in_a_clean_environment(
    checkpoint: Path,
    photographs: Path,
    expected_of_photographs: dict[str, np.ndarray],
    tmp_path: Path,
    with_torch: CleanEnvironment,
) -> None:
    wheel = build_wheel(tmp_path)
    constraints = ["-c", str(ROOT / "constraints.txt")]
    environment = CleanEnvironment(tmp_path / "venv", *constraints, f"{wheel}[pipelines]", borrowed=with_torch)
    program = (environment.groupvit, "app")
    with running("--checkpoint", str(checkpoint), command=program, cwd=tmp_path) as (address, _):
        found = {
            file.stem: _labels(httpx.post(f"{address}api/labels", **_form(file), timeout=120))
            for file in photographs.iterdir()
        }
    assert_same("http", expected_of_photographs, found)
