"""What `pip install groupvit` alone gives: commands that need no optional dependencies, and what the others say."""

import importlib.metadata
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.exits import CleanEnvironment, build_wheel, run_outside
from tests.support.small_checkpoint import write_small_checkpoint

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WITHOUT = """
import sys
from importlib.abc import MetaPathFinder

class Missing(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in {missing}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
from pipelines.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def modules_of(extra: str) -> set[str]:
    """Top-level modules of the packages that an extra names."""
    names = {re.split(r"[\[<>=;]", line)[0].lower() for line in PROJECT["optional-dependencies"][extra]}
    found = importlib.metadata.packages_distributions()
    return {module for module, packages in found.items() if names & {each.lower() for each in packages}}


def run_without(*arguments: str) -> "subprocess.CompletedProcess[str]":
    missing = modules_of("pipelines") | modules_of("nouns")
    assert {"ray", "mlflow", "img2dataset", "s3fs", "spacy", "yaml", "matplotlib"} <= missing
    code = WITHOUT.format(missing=sorted(missing))
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT, check=False
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_small_checkpoint(tmp_path_factory.mktemp("light") / "checkpoint")


def test_segment_export_and_import_weights_work(checkpoint: str, tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)).save(photo)
    folders = {name: str(tmp_path / name) for name in ("masks", "hf", "again")}
    for command in (
        ["segment", str(photo), "--checkpoint", checkpoint, "--classes", "cat, dog", "--out", folders["masks"]],
        ["export", "--checkpoint", checkpoint, "--to", "hf", "--out", folders["hf"]],
        ["import-weights", folders["hf"], "--out", folders["again"]],
    ):
        done = run_without(*command)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "masks/labels.png").exists()
    weights = [Path(folder, "model.safetensors").read_bytes() for folder in (checkpoint, folders["again"])]
    assert len(weights[0]) > 1_000_000 and weights[0][-1000:] == weights[1][-1000:]


@pytest.mark.parametrize("command", ["demo", "doctor", "app", "evaluate", "register", "submit pretrain debug"])
def test_others_say_what_to_install(command: str, checkpoint: str, tmp_path: Path) -> None:
    flags = {
        "demo": ["--out", str(tmp_path / "demo")],
        "app": ["--checkpoint", checkpoint],
        "evaluate": ["--checkpoint", checkpoint, "--root", str(tmp_path)],
        "register": ["--checkpoint", checkpoint, "--name", "x"],
    }
    done = run_without(*command.split(), *flags.get(command, []))
    assert done.returncode == 1
    assert re.fullmatch(
        rf"groupvit: error: `{command.split()[0]}` needs the package [\w.]+, which is not installed: pip install "
        r"'groupvit\[pipelines(,nouns)?\]'\n",
        done.stderr,
    ), done.stderr


def test_the_help_needs_nothing() -> None:
    assert run_without("--help").returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_wheel_in_a_clean_environment(checkpoint: str, tmp_path: Path) -> None:
    """Built, installed without what belongs to this checkout, and tried in another folder."""
    with_torch = CleanEnvironment(tmp_path / "torch", "torch==2.14.1", "torchvision==0.29.1")
    requirements = ["-c", str(ROOT / "constraints.txt"), str(build_wheel(tmp_path))]
    started = time.monotonic()
    environment = CleanEnvironment(tmp_path / "venv", *requirements, borrowed=with_torch)
    print(f"installed in {time.monotonic() - started:.0f} s beside torch")
    listed = run_outside(environment.python, "-m", "pip", "list", cwd=tmp_path)
    assert not re.search(r"^(ray|mlflow|img2dataset|spacy) ", listed, re.MULTILINE)
    photo = tmp_path / "photo.png"
    Image.new("RGB", (80, 60), "red").save(photo)
    program = environment.groupvit
    run_outside(program, "segment", str(photo), "--checkpoint", checkpoint, "--classes", "cat, dog", cwd=tmp_path)
    assert (tmp_path / "segmented/labels.png").exists()
    assert "pip install 'groupvit[pipelines]'" in run_outside(program, "demo", cwd=tmp_path, code=1)
