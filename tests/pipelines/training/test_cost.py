"""Estimates: the arithmetic by hand, and that no speed is ever made up."""

import dataclasses
import json
from pathlib import Path

import pytest

from groupvit.config import to_dict
from pipelines.cli.main import main
from pipelines.cluster.instances import INSTANCES
from pipelines.experiments.catalogue import EXPERIMENTS
from pipelines.experiments.config import ExperimentConfig
from pipelines.runs.folder import RunFolder
from pipelines.training.cost import FORMULA, CostConfig, estimate

PAPER = EXPERIMENTS["gcc_yfcc_30e"]()


def write_run(folder: Path, config: ExperimentConfig, *, step: int, train_seconds: float) -> str:
    """A run's folder with the state of one checkpoint, as training leaves it."""

    def write(checkpoint: Path) -> None:
        checkpoint.mkdir(parents=True)
        state = {"step": step, "train_seconds": train_seconds, "config": to_dict(config)}
        (checkpoint / "state.json").write_text(json.dumps(state))

    RunFolder(str(folder)).save_checkpoint(step, write)
    return str(folder)


def with_workers(config: ExperimentConfig, num_workers: int, device: str = "gpu") -> ExperimentConfig:
    training = dataclasses.replace(config.training, num_workers=num_workers, device=device)  # pyright: ignore
    return dataclasses.replace(config, training=training)


def test_the_papers_two_days_come_out_of_its_speed(capsys: pytest.CaptureFixture[str]) -> None:
    """209,910 steps of 4,096 images on 16 GPUs at 311 images/s each: the authors' 2 days."""
    config = CostConfig(instances=("g5.12xlarge=4",), images_per_second_per_gpu=311.0, price=("g5.12xlarge=5",))
    summary = estimate(config, PAPER)
    hours = 209_910 * 4096 / (311 * 16) / 3600
    assert summary["hours"] == pytest.approx(hours, abs=1e-3)
    assert hours == pytest.approx(48, abs=0.1)
    assert summary["total_usd"] == pytest.approx(hours * 4 * 5, abs=0.01)
    shown = capsys.readouterr().out
    assert FORMULA in shown
    assert "859,791,360 / (311.0 x 16) / 3600" in shown


def test_every_part_is_counted() -> None:
    config = CostConfig(
        instances=("g5.xlarge=2", "m6i.4xlarge=3"),
        images_per_second_per_gpu=100.0,
        overhead=0.25,
        storage_gb=1000.0,
        usd_per_gb_month=0.02,
        egress_gb=10.0,
        usd_per_gb_egress=0.1,
    )
    summary = estimate(config, EXPERIMENTS["debug"]())
    hours = 20 * 32 / (100 * 2) / 3600 * 1.25
    per_hour = 2 * INSTANCES["g5.xlarge"].usd_per_hour + 3 * INSTANCES["m6i.4xlarge"].usd_per_hour
    assert summary["num_gpus"] == 2
    assert summary["usd_per_hour"] == pytest.approx(per_hour)
    assert summary["machines_usd"] == pytest.approx(hours * per_hour, abs=0.01)
    assert summary["storage_usd"] == pytest.approx(1000 * 0.02 * hours / 730, abs=0.01)
    assert summary["egress_usd"] == 1.0
    assert summary["total_usd"] == pytest.approx(hours * per_hour + 1000 * 0.02 * hours / 730 + 1, abs=0.01)


def test_a_price_takes_the_place_of_the_listed_one_or_adds_a_machine() -> None:
    config = CostConfig(
        instances=("g5.12xlarge=1", "dgx=1"), images_per_second_per_gpu=1.0, price=("g5.12xlarge=2.2", "dgx:4:128=10")
    )
    summary = estimate(config, PAPER)
    assert summary["num_gpus"] == 8
    assert summary["usd_per_hour"] == pytest.approx(12.2)


def test_the_speed_of_a_run_is_what_it_did_per_worker(tmp_path: Path) -> None:
    uri = write_run(tmp_path, with_workers(PAPER, 4), step=1000, train_seconds=4096.0)
    summary = estimate(CostConfig(instances=("g5.xlarge=1",), from_run=uri), PAPER)
    assert summary["images_per_second_per_gpu"] == 250.0
    assert uri in summary["rate_source"]


def test_the_speed_of_another_model_or_machine_is_refused(tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", with_workers(EXPERIMENTS["demo"](), 2), step=10, train_seconds=1.0)
    with pytest.raises(ValueError, match=r"trained with model\.\S+=\S+, gcc_yfcc_30e has .*its speed says nothing"):
        estimate(CostConfig(instances=("g5.xlarge=1",), from_run=other), PAPER)
    slow = write_run(tmp_path / "cpu", with_workers(PAPER, 2, "cpu"), step=10, train_seconds=1.0)
    with pytest.raises(ValueError, match="trained on CPUs"):
        estimate(CostConfig(instances=("g5.xlarge=1",), from_run=slow), PAPER)
    with pytest.raises(ValueError, match="has no checkpoint"):
        estimate(CostConfig(instances=("g5.xlarge=1",), from_run=str(tmp_path / "none")), PAPER)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("gcc_yfcc_30e", "instances is empty"),
        ("gcc_yfc_30e", "did you mean gcc_yfcc_30e?"),
        ("gcc_yfcc_30e --instances g5.xlarge=1", "give one of them, a speed that was measured"),
        ("gcc_yfcc_30e --instances g5.xlarge=1 --images-per-second-per-gpu 1 --from-run x", "give one of them"),
        ("gcc_yfcc_30e --instances g5.xlarge=1 --images-per-second-per-gpu 0", "is not a speed"),
        ("gcc_yfcc_30e --instances g5.xlarge=1 --images-per-second-per-gpu nan", "is not a speed"),
        ("gcc_yfcc_30e --instances g5.xlarge --images-per-second-per-gpu 1", "says no number of machines"),
        ("gcc_yfcc_30e --instances g5.xlarge=0 --images-per-second-per-gpu 1", "says no number of machines"),
        ("gcc_yfcc_30e --instances h9.large=1 --images-per-second-per-gpu 1", "no price of h9.large is known"),
        ("gcc_yfcc_30e --instances m6i.4xlarge=1 --images-per-second-per-gpu 1", "have no GPU"),
        ("gcc_yfcc_30e --instances g5.xlarge=3 --images-per-second-per-gpu 1", "that divides 16"),
        ("gcc_yfcc_30e --instances x=1 --price x=3 --images-per-second-per-gpu 1", "x is not listed"),
        ("gcc_yfcc_30e --instances x=1 --price x:1=3 --images-per-second-per-gpu 1", "is not a price"),
        ("gcc_yfcc_30e --instances g5.xlarge=1 --images-per-second-per-gpu 1 --overhead -1", "overhead=-1.0"),
    ],
)
def test_mistakes_are_one_line(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", *arguments.split()]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_json_has_the_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--instances g5.12xlarge=4 --images-per-second-per-gpu 100 --json"
    assert main(["cost", "gcc_yfcc_30e", *flags.split()]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["num_gpus"] == 16 and summary["total_usd"] > 0


def test_every_listed_price_says_where_and_when_it_was_read() -> None:
    for name, instance in INSTANCES.items():
        assert instance.name == name
        assert instance.usd_per_hour > 0 and instance.num_vcpus > 0
        assert instance.region and instance.date and instance.source
        assert (instance.gpu is None) is (instance.num_gpus == 0)
