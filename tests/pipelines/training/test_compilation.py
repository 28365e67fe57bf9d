"""Whether a worker compiles its towers, where the result is kept, and what happens where there is no compiler."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._inductor import config as inductor

from groupvit.config import LossConfig
from groupvit.noise import generator_noise
from groupvit.training import Towers
from pipelines.experiments.config import ExperimentConfig, IngestConfig, TrainingConfig
from pipelines.runs.folder import RunFolder
from pipelines.training.compilation import CACHE_VARIABLE, prepare_towers
from tests.support.small_model import WORDS, random_batch, small_model

TINY = replace(
    WORDS,
    image=replace(WORDS.image, depths=(1,), num_heads=(2,), num_group_tokens=(4,), num_output_groups=(4,)),
)


def prepared(folder: Path, choice: str) -> tuple[bool, list[str]]:
    """Whether the towers are compiled, and what was said."""
    torch._dynamo.reset()
    model = small_model(TINY).train()
    config = ExperimentConfig(
        name="tiny",
        model=TINY,
        loss=LossConfig(),
        ingest=IngestConfig(slice_size=2),
        training=TrainingConfig(global_batch_size=2, compile=choice),  # pyright: ignore[reportArgumentType]
    )
    said: list[str] = []
    towers = prepare_towers(
        config, RunFolder(str(folder / "run")), model, random_batch(2, 0), generator_noise, "float32", said.append
    )
    return towers != Towers.of(model), said


@pytest.mark.parametrize("choice", ["auto", "off"])
def test_on_a_cpu_only_who_asks_for_it_compiles(tmp_path: Path, choice: str) -> None:
    assert prepared(tmp_path, choice) == (False, [])


def test_without_a_compiler_it_says_so_once_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    with inductor.patch({"cpp.cxx": ("no-such-compiler",)}):
        compiled, said = prepared(tmp_path, "on")
    assert not compiled
    [line] = said
    assert line.startswith("warning: training goes on without torch.compile, slower, because it failed: ")
    assert "compiler" in line and "\n" not in line


@pytest.mark.slow
def test_what_is_compiled_is_kept_in_the_folder_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, "")
    monkeypatch.delenv(CACHE_VARIABLE)
    compiled, [line] = prepared(tmp_path, "on")
    assert compiled
    assert line.startswith("compiled the towers in ") and line.endswith(
        f"the next start finds them in {tmp_path}/run/compiled"
    )
    assert os.listdir(tmp_path / "run" / "compiled")
