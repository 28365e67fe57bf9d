"""The code that exported folders carry."""

import ast
from pathlib import Path

import pytest

import pipelines.models.auto_model
from pipelines.models.bundle import bundled

MODELS = Path(pipelines.models.auto_model.__file__).parent


@pytest.mark.parametrize(("entry", "package"), [("auto_model", "."), ("onnx_runner", "groupvit_runner.")])
def test_a_bundle_has_all_that_it_imports_and_nothing_of_groupvit(entry: str, package: str) -> None:
    sources = bundled(MODELS / f"{entry}.py", package)
    assert {"", "config.py", "resizing.py", "words.py", "tokenizer.py"} <= set(sources)
    for name, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("groupvit_runner")):
                assert f"{(node.module or '').rpartition('.')[2]}.py" in sources, name
                assert node.level == (1 if package == "." else 0)
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").partition(".")[0] not in ("groupvit", "pipelines"), name


def test_the_runner_needs_no_pytorch() -> None:
    sources = bundled(MODELS / "onnx_runner.py", "groupvit_runner.")
    assert not [name for name, source in sources.items() if "import torch" in source or "from torch" in source]


def test_modules_are_copied_as_they_are() -> None:
    original = MODELS.parents[1] / "groupvit/words.py"
    [_, *copied] = bundled(MODELS / "onnx_runner.py", "groupvit_runner.")["words.py"].splitlines()
    changed = [new for old, new in zip(original.read_text().splitlines(), copied, strict=True) if old != new]
    assert changed == ["from groupvit_runner.tokenizer import Tokenize"]
