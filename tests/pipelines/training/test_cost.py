"""Estimates: the arithmetic by hand, and that no speed is ever made up."""

import dataclasses
import json
from pathlib import Path

import pytest

from groupvit.config import to_dict
from pipelines.cli.main import main
from pipelines.experiments.catalogue import EXPERIMENTS
from pipelines.experiments.config import ExperimentConfig
from pipelines.runs.folder import RunFolder
from pipelines.training.cost import FORMULA, CostConfig, estimate
from tests.support.training_state import training_state

PAPER = EXPERIMENTS["gcc_yfcc_30e"]()


def write_run(folder: Path, config: ExperimentConfig, *, step: int, train_seconds: float) -> str:
    """A run's folder with the state of one checkpoint, as training leaves it."""

    def write(checkpoint: Path) -> None:
        checkpoint.mkdir(parents=True)
        state = training_state(step, train_seconds=train_seconds, config=to_dict(config))
        (checkpoint / "state.json").write_text(json.dumps(state))

    RunFolder(str(folder)).save_checkpoint(step, write)
    return str(folder)


def with_workers(config: ExperimentConfig, num_workers: int, device: str = "gpu") -> ExperimentConfig:
    training = dataclasses.replace(config.training, num_workers=num_workers, device=device)  # pyright: ignore
    return dataclasses.replace(config, training=training)


def test_the_papers_two_days_come_out_of_its_speed(capsys: pytest.CaptureFixture[str]) -> None:
    """209,910 steps of 4,096 images on 16 GPUs at 311 images/s each: the authors' 2 days."""
    config = CostConfig(num_gpus=16, images_per_second_per_gpu=311.0, price_per_hour=20.0)
    summary = estimate(config, PAPER)
    hours = 209_910 * 4096 / (311 * 16) / 3600
    assert summary["hours"] == pytest.approx(hours, abs=1e-3)
    assert hours == pytest.approx(48, abs=0.1)
    assert summary["total_usd"] == pytest.approx(hours * 20, abs=0.01)
    shown = capsys.readouterr().out
    assert FORMULA in shown
    assert "859,791,360 / (311.0 x 16) / 3600" in shown


def test_every_part_is_counted() -> None:
    config = CostConfig(num_gpus=2, images_per_second_per_gpu=100.0, overhead=0.25, price_per_hour=4.5)
    summary = estimate(config, EXPERIMENTS["debug"]())
    hours = 20 * 32 / (100 * 2) / 3600 * 1.25
    assert summary["num_gpus"] == 2
    assert summary["hours"] == pytest.approx(hours, abs=1e-3)
    assert summary["total_usd"] == pytest.approx(hours * 4.5, abs=0.01)


def test_no_price_is_made_up_and_every_worker_of_the_experiment_has_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    summary = estimate(CostConfig(images_per_second_per_gpu=1.0), PAPER)
    assert summary["num_gpus"] == PAPER.training.num_workers == 16
    assert summary["total_usd"] is None
    assert "no price: give --price-per-hour" in capsys.readouterr().out


def test_cores_and_network_follow_from_the_speed(capsys: pytest.CaptureFixture[str]) -> None:
    """8 GPUs at 1,000 images/s, read at 300 a core: 26.7 cores. 150,528 bytes of pixels, 4 texts of 77 int32."""
    config = CostConfig(num_gpus=8, images_per_second_per_gpu=1000.0, images_per_second_per_core=300.0)
    summary = estimate(config, PAPER)
    assert summary["images_per_second"] == 8000 and summary["reading_cores"] == 27
    assert summary["slice_bytes_per_second"] == 8000 * (224 * 224 * 3 + 4 * 77 * 4)
    shown = capsys.readouterr().out
    assert "8,000 / 300 = 27 for reading" in shown and "at most 1.21 GB/s" in shown
    assert estimate(CostConfig(images_per_second_per_gpu=1.0), PAPER)["reading_cores"] is None
    assert "no speed of reading" in capsys.readouterr().out


def test_the_speed_of_a_run_is_what_it_did_per_worker(tmp_path: Path) -> None:
    uri = write_run(tmp_path, with_workers(PAPER, 4), step=1000, train_seconds=4096.0)
    summary = estimate(CostConfig(num_gpus=1, from_run=uri), PAPER)
    assert summary["images_per_second_per_gpu"] == 250.0
    assert uri in summary["rate_source"]


def test_the_speed_of_another_model_or_machine_is_refused(tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", with_workers(EXPERIMENTS["demo"](), 2), step=10, train_seconds=1.0)
    with pytest.raises(ValueError, match=r"trained with model\.\S+=\S+, gcc_yfcc_30e has .*its speed says nothing"):
        estimate(CostConfig(num_gpus=1, from_run=other), PAPER)
    slow = write_run(tmp_path / "cpu", with_workers(PAPER, 2, "cpu"), step=10, train_seconds=1.0)
    with pytest.raises(ValueError, match="trained on CPUs"):
        estimate(CostConfig(num_gpus=1, from_run=slow), PAPER)
    with pytest.raises(ValueError, match="has no checkpoint"):
        estimate(CostConfig(num_gpus=1, from_run=str(tmp_path / "none")), PAPER)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("gcc_yfc_30e", "did you mean gcc_yfcc_30e?"),
        ("gcc_yfcc_30e", "give one of them, a speed that was measured"),
        ("gcc_yfcc_30e --images-per-second-per-gpu 1 --from-run x", "give one of them"),
        ("gcc_yfcc_30e --images-per-second-per-gpu 0", "is not a speed"),
        ("gcc_yfcc_30e --images-per-second-per-gpu nan", "is not a speed"),
        ("gcc_yfcc_30e --num-gpus 0 --images-per-second-per-gpu 1", "num_gpus=0 do not train"),
        ("gcc_yfcc_30e --num-gpus 17 --images-per-second-per-gpu 1", "more than the 16 slices of a batch"),
        ("gcc_yfcc_30e --images-per-second-per-gpu 1 --overhead -1", "overhead=-1.0"),
        ("gcc_yfcc_30e --images-per-second-per-gpu 1 --price-per-hour -1", "price_per_hour=-1.0"),
        (
            "gcc_yfcc_30e --images-per-second-per-gpu 1 --images-per-second-per-core 0",
            "images_per_second_per_core=0.0 is not a speed",
        ),
        ("gcc_yfcc_30e --instances g5.xlarge=1 --images-per-second-per-gpu 1", "unknown flag --instances"),
    ],
)
def test_mistakes_are_one_line(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", *arguments.split()]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_json_has_the_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--num-gpus 16 --images-per-second-per-gpu 100 --price-per-hour 20 --json"
    assert main(["cost", "gcc_yfcc_30e", *flags.split()]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["num_gpus"] == 16 and summary["total_usd"] > 0


def test_gpus_wait_for_those_that_have_one_slice_more() -> None:
    """16 slices on 5 GPUs: 4, 3, 3, 3 and 3."""
    hours = [
        estimate(CostConfig(num_gpus=number, images_per_second_per_gpu=100.0), PAPER)["hours"] for number in (4, 5)
    ]
    assert hours[1] == pytest.approx(hours[0])
