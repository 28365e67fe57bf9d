"""Fixtures of the tests that disturb a run on a local cluster."""

from pathlib import Path

import pytest

from pipelines.training.pretrain import pretrain
from tests.support.small_run import make_config, write_noise


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_noise(str(tmp_path_factory.mktemp("data") / "train"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def undisturbed(data: str, runs: Path, cluster: None) -> Path:
    """The folder of a run of two workers that nothing disturbed."""
    pretrain(make_config(data, runs, "undisturbed", num_workers=2))
    return runs / "undisturbed"
