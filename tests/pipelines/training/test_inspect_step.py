"""`groupvit inspect-step`: the samples of a step, as the model got them."""

import dataclasses
import json
from pathlib import Path

import pytest

from pipelines.cli.main import main
from pipelines.experiments.config import ExperimentConfig
from pipelines.ingest.plan import plan_ingest
from pipelines.ingest.uncurated import open_source
from pipelines.runs.folder import RunFolder
from pipelines.runs.skipped import write_skipped
from pipelines.training.job import start_or_continue
from tests.support.small_run import BATCH, make_config, write_noise


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> tuple[ExperimentConfig, RunFolder]:
    """A run that has begun, and has skipped step 5."""
    folder = tmp_path_factory.mktemp("inspect")
    config = make_config(write_noise(str(folder / "data")), folder, "noise", num_workers=1)
    config = dataclasses.replace(config, tracking=dataclasses.replace(config.tracking, uri=None))
    run = RunFolder(str(folder / "noise"))
    start_or_continue(run, config, [open_source(uri) for uri in config.data.sources])
    write_skipped(run, 4, {"loss": float("nan"), "grad_norm": 12.5, "median": 1.25})
    return config, run


def test_the_page_shows_the_samples_that_the_step_consumed(
    started: tuple[ExperimentConfig, RunFolder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = started
    page = tmp_path / "step.html"
    assert main(["inspect-step", run.uri, "5", "--out", str(page), "--num-samples", "7", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["skipped"] == {"loss": None, "grad_norm": 12.5, "median": 1.25}

    plan, expected = plan_ingest(config), []
    for position in range(4 * BATCH, 5 * BATCH):
        window, place = divmod(position, plan.order.window_size)
        samples = plan.order.window(window)
        expected.append((int(samples.row_group[place]), int(samples.row[place])))
    assert len(set(expected)) == len(set(result["sample_ids"])) == BATCH == len(result["sample_ids"])

    text = page.read_text()
    assert text.count("<img ") == 7 and text.count("<h1>Step 5 of noise</h1>") == 1
    assert "not finite" in text and "12.5" in text
    assert "a thing number" in text and result["sample_ids"][0] in text and result["sample_ids"][-1] in text


def test_a_step_that_was_used_has_no_record(
    started: tuple[ExperimentConfig, RunFolder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect-step", started[1].uri, "6", "--out", str(tmp_path / "a.html"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["skipped"] is None


@pytest.mark.parametrize(
    ("step", "message"), [("0", "step=0 is not a step of .* give 1 to 30"), ("31", "step=31 is not a step")]
)
def test_a_step_that_does_not_exist_is_refused(
    started: tuple[ExperimentConfig, RunFolder], capsys: pytest.CaptureFixture[str], step: str, message: str
) -> None:
    assert main(["inspect-step", started[1].uri, step]) == 2
    import re

    assert re.search(message, capsys.readouterr().err)
