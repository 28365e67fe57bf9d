"""A training checked without its GPUs, as a user sees it: exit codes, lines, and the numbers by hand."""

import json
from pathlib import Path

import pytest

from pipelines.cli.main import main
from pipelines.experiments.catalogue import EXPERIMENTS
from pipelines.training.cards import device_of, estimated_speed
from tests.support.dataset_folder import make_dataset

PAPER = "pretrain gcc_yfcc_30e --training.num-workers 64 --ingest.slice-size 64 --dry-run.gpu H100"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def test_data_are_read_and_the_speed_of_reading_is_measured(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_dataset(folder / "data", 80)
    command = "pretrain debug --data data --training.num-workers 2 --training.device cpu --dry-run --json"
    assert main(command.split()) == 0
    shown = capsys.readouterr().out
    summary = json.loads(shown.splitlines()[-1])
    assert summary["faults"] == 0 and summary["device"] == "this machine" and summary["precision"] == "float32"
    assert summary["memory_total"] == sum(summary["memory"].values()) > 4 * 4 * summary["num_parameters"]
    assert summary["checkpoint_bytes"] == 12 * summary["num_parameters"]
    assert summary["images_per_second_per_core"] != 443 and "(measured here)" in shown
    assert "80 samples: 8.0 epochs" in shown and "texts of the data" in shown
    assert "unknown: no speed of this model" in shown
    assert sorted(path.name for path in folder.iterdir()) == ["data"], "something was written"


def test_64_gpus_are_checked_where_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    """Missing data are one fault, and the rest is checked all the same."""
    assert main([*PAPER.split(), "--json"]) == 1
    captured = capsys.readouterr()
    summary = json.loads(captured.out.splitlines()[-1])
    assert captured.err == "groupvit: error: 1 fault: data\n"
    assert summary["device"] == "H100" and summary["precision"] == "bfloat16"
    assert 2.5 < summary["memory_total"] / 2**30 < 3.5
    gradients = 4 * summary["num_parameters"]
    assert gradients <= summary["reduced_bytes_per_step"] < 2.1 * gradients
    assert summary["images_per_second_per_worker"] == 1044  # docs/performance.md: 64 H100, slices of 64
    assert "3.6 hours" in captured.out and "151 cores for 66,816 images/s" in captured.out
    assert "1,044 slices/s, and Ray is sure to deliver 100" in captured.out


@pytest.mark.parametrize(
    ("flags", "hours"), [("", "unknown"), ("--dry-run.images-per-second-per-gpu 100", "0.0 hours")]
)
def test_no_speed_is_made_up_for_another_model(flags: str, hours: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["pretrain", "debug", "--dry-run.gpu", "t4", *flags.split()])
    assert f"time                {hours}" in capsys.readouterr().out


def test_what_does_not_fit_is_a_fault(capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--training.num-workers 1 --training.global-batch-size 1024 --ingest.slice-size 1024 --dry-run.gpu L4"
    flags += " --training.precision float32"
    assert main(["pretrain", "gcc_yfcc_30e", *flags.split()]) == 1
    captured = capsys.readouterr()
    assert "fault    memory" in captured.out and "give a smaller --ingest.slice-size" in captured.out
    assert captured.err == "groupvit: error: 2 faults: data, memory\n"


def test_a_configuration_that_cannot_work_is_named_with_the_fix(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "gcc_yfcc_30e", "--training.global-batch-size", "0", "--dry-run"]) == 1
    captured = capsys.readouterr()
    assert "fault    configuration       training.global_batch_size=0 is too small: give at least 1" in captured.out
    assert captured.err == "groupvit: error: 2 faults: configuration, data\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--dry-run", "an experiment is missing"),
        ("debug --dry-run.gpu V100", "dry_run.gpu=V100 is not a GPU that is known: give one of B200, H200"),
        ("debug --dry-run.gpus H100", "unknown flag --dry-run.gpus: did you mean --dry-run.gpu?"),
        ("debug --dry-run.gpu H100 --training.device cpu", "leave one of them out"),
        ("debug --dry-run.gpus-per-node 0", "dry_run.gpus_per_node=0 is too small: give at least 1"),
        ("debug --dry-run.images-per-second-per-gpu nan", "dry_run.images_per_second_per_gpu=nan is not a speed"),
        ("debug --training.device gpu --dry-run", "dry_run.gpu: this machine has no GPU: name that of the workers"),
    ],
)
def test_mistakes_are_one_line(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", *arguments.split()]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_help_tells_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["pretrain", "--dry-run", "--help"])
    assert "--dry-run.gpus-per-node" in capsys.readouterr().out


def test_speeds_are_those_of_the_table() -> None:
    """docs/performance.md, What a paper-size run needs."""
    paper = EXPERIMENTS["gcc_yfcc_30e"]()
    assert estimated_speed(paper, "H100") == pytest.approx(3264) and estimated_speed(paper, "H200") == 3264
    assert estimated_speed(paper, "A10G") == pytest.approx(481, abs=1)
    assert estimated_speed(paper, "T4") is None and estimated_speed(EXPERIMENTS["demo"](), "H100") is None
    assert device_of("h100").name == "H100"
