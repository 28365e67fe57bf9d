"""Packages at their first use: what runs without them, and what is said where they are needed."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from groupvit import tokenizer
from groupvit.decode import decode_image, read_header
from groupvit.late_import import LateImport, MissingPackageError

ROOT = Path(__file__).parents[2]
LACKING = ("simplejpeg", "ftfy", "spacy", "mlflow", "tyro", "s3fs", "boto3", "ray", "img2dataset", "optuna", "pynvml")
"""Packages of the project that a machine with torch, timm and transformers may lack."""


def image_file(kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(file, kind)
    return file.getvalue()


def test_a_name_is_the_packages() -> None:
    assert LateImport("json", "this test").dumps([1]) == "[1]"


def test_a_jpeg_names_the_missing_package_and_is_not_taken_for_corrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    for use in (decode_image, read_header):
        with pytest.raises(MissingPackageError, match=r"^decoding JPEG files needs the package simplejpeg, .*$"):
            use(image_file("JPEG"))
    assert decode_image(image_file("PNG")).shape == (8, 8, 3)


def test_text_that_is_not_ascii_names_the_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ftfy", None)
    assert tokenizer.clean(" A  dog ") == "a dog"
    with pytest.raises(MissingPackageError, match="needs the package ftfy, which is not installed: pip install ftfy"):
        tokenizer.clean("a café")


def test_the_method_and_the_loop_are_imported_without_them() -> None:
    modules = [
        *(f"groupvit.{file.stem}" for file in sorted((ROOT / "groupvit").glob("*.py")) if file.stem != "__init__"),
        *("pipelines.training.loop", "pipelines.ingest.slices", "pipelines.demo.shapes", "pipelines.demo.compose"),
    ]
    program = (
        f"import sys, importlib; sys.modules.update(dict.fromkeys({LACKING!r}))\n"
        f"for name in {modules!r}: importlib.import_module(name)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
