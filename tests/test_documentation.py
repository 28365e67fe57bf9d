"""What the documentation says, tried: commands parse, Python runs, links lead somewhere, tables hold."""

import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.benchmarks.catalogue import BENCHMARKS
from pipelines.benchmarks.class_lists import read_classes
from pipelines.benchmarks.context_labels import PrepareContextConfig
from pipelines.benchmarks.published import PAPER_THRESHOLDS, PUBLISHED
from pipelines.cli.commands import COMMANDS
from pipelines.cli.flags import parse
from pipelines.cli.main import main
from pipelines.cli.requests import dry_run_request, sweep_request
from pipelines.cli.submit import split_flags
from pipelines.cli.submittable import SUBMITTABLE
from pipelines.cluster.config import SubmitConfig
from pipelines.comparison.config import CompareConfig
from pipelines.curation.config import CurateConfig
from pipelines.dataset.inspect import InspectConfig
from pipelines.demo.generate import DemoDataConfig
from pipelines.demo.run import DemoConfig
from pipelines.doctor.config import DoctorConfig
from pipelines.download.config import DownloadConfig
from pipelines.evaluation.config import EvaluateConfig
from pipelines.experiments.catalogue import EXPERIMENTS
from pipelines.models.export import ExportConfig
from pipelines.models.import_weights import ImportWeightsConfig
from pipelines.models.register import RegisterConfig
from pipelines.removal.config import ForgetConfig
from pipelines.serving.app.config import AppConfig
from pipelines.serving.segment import SegmentConfig
from pipelines.sweeps.plan import plan_sweep
from pipelines.training.cost import CostConfig
from pipelines.training.inspect_step import InspectStepConfig
from tests.support.exits import run_outside
from tests.support.small_checkpoint import write_small_checkpoint

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
CONFIGS: dict[str, Any] = {
    "demo": DemoConfig,
    "demo-data": DemoDataConfig,
    "download": DownloadConfig,
    "curate": CurateConfig,
    "inspect": InspectConfig,
    "inspect-step": InspectStepConfig,
    "forget": ForgetConfig,
    "evaluate": EvaluateConfig,
    "compare": CompareConfig,
    "segment": SegmentConfig,
    "import-weights": ImportWeightsConfig,
    "export": ExportConfig,
    "app": AppConfig,
    "prepare-context": PrepareContextConfig,
    "register": RegisterConfig,
    "cost": CostConfig,
    "doctor": DoctorConfig,
}


def blocks(page: Path, language: str = "") -> list[str]:
    """The blocks of code on a page that are marked as of this language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [code for marked, code in found if marked == language]


def code_of(page: str, containing: str) -> str:
    [code] = [block for block in blocks(ROOT / page, "python") if containing in block]
    return code


LINES = [line for page in PAGES for block in blocks(page) for line in block.splitlines()]
COMMAND_LINES = sorted({line.partition("#")[0].strip() for line in LINES if line.startswith("groupvit ")})


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_commands_in_the_documentation_parse(line: str) -> None:
    command, *arguments = shlex.split(line)[1:]
    if command == "pretrain":
        dry_run_request(arguments)  # has flags of its own, and need not
        return
    if command == "submit":
        own, (submitted, *arguments) = split_flags(arguments)
        parse(SubmitConfig, own, prog=line)
        if submitted in SUBMITTABLE:
            SUBMITTABLE[submitted](arguments)
        return
    if command == "sweep":
        plan_sweep(*sweep_request(arguments))
        return
    if command == "cost":
        experiment, *arguments = arguments
        assert experiment in EXPERIMENTS
    if command == "demo-data":
        kind, *arguments = arguments
        assert kind in ("shapes", "stamps")
    parse(CONFIGS[command], arguments, prog=line)


def test_all_commands_are_among_them() -> None:
    assert {shlex.split(line)[1] for line in COMMAND_LINES} | {"demo"} == set(COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing
    # Files named in the text, like `tests/chaos`.
    named = re.findall(r"`(?:python )?((?:tests|docs|infra)/[\w/.]+)", page.read_text())
    assert not [name for name in named if not (ROOT / name).exists()]


def test_the_page_on_evaluation_knows_every_benchmark_changed_word_and_published_number() -> None:
    text = (ROOT / "docs/evaluation.md").read_text()
    assert not [name for name in BENCHMARKS if f"| `{name}` |" not in text]
    rows = {
        "`voc21`, `voc20`": read_classes("voc"),
        "`context60`, `context59`": read_classes("context"),
        "`coco-stuff`": read_classes("coco"),
    }
    for names, classes in rows.items():
        changed = [entry for entry in classes if entry.words not in ((entry.name,), ())]
        listed = ", ".join(f"{entry.name} → {entry.words[0]}" for entry in changed)
        assert f"| {names} | {listed} |" in text
    numbers = {number for rows in PUBLISHED.values() for _, number in rows} | {
        f"{t:g}" for t in PAPER_THRESHOLDS.values()
    }
    assert not [number for number in numbers if number.replace("-", "–") not in text]


def test_the_example_of_onnx_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = write_small_checkpoint(tmp_path / "checkpoint")
    assert main(["export", "--checkpoint", checkpoint, "--to", "onnx", "--out", "exported/onnx"]) == 0
    write_photo(tmp_path / "photo.jpg")
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "example.py").write_text(code_of("docs/use.md", "OnnxSegmenter"))
    found = runpy.run_path("example.py")["found"]
    assert found.labels.shape == (90, 120) and sum(found.shares.values()) == pytest.approx(1)


def test_the_example_of_transformers_runs(tmp_path: Path) -> None:
    checkpoint = write_small_checkpoint(tmp_path / "checkpoint")
    assert main(["export", "--checkpoint", checkpoint, "--to", "hf-auto", "--out", f"{tmp_path}/exported/hf-auto"]) == 0
    write_photo(tmp_path / "photo.jpg")
    example = code_of("docs/use.md", "AutoImageProcessor") + "\nprint(labels.dtype, *labels.shape)\n"
    variables = {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    shown = run_outside(sys.executable, "-c", example, cwd=tmp_path, variables=variables)
    assert "torch.uint8 90 120\n" in shown


def test_the_example_of_python_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_small_checkpoint(tmp_path / "checkpoints/gcc_yfcc")
    write_photo(tmp_path / "photo.jpg")
    (tmp_path / "example.py").write_text(code_of("docs/use.md", "from groupvit.segmenter"))
    found = runpy.run_path("example.py")["found"]
    assert found.labels.shape == (90, 120) and sum(found.shares) == pytest.approx(1)
    assert "background" in capsys.readouterr().out


def write_photo(file: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels.repeat(10, axis=0).repeat(10, axis=1)).save(file)
