"""What MLflow's pages show of a sweep's report, in a real browser."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from PIL import Image

from pipelines.sweeps.report.leaderboard import leaderboard, log_report, write_report
from pipelines.sweeps.report.summary import SweepReport
from tests.support.chromium import CHROMEDRIVER, CHROMIUM
from tests.support.mlflow_server import MlflowServer
from tests.support.sweep_pages import SweepPages, browser
from tests.support.trial_records import grid

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(600),
    pytest.mark.skipif(CHROMEDRIVER is None or CHROMIUM is None, reason="chromium and chromedriver are not on PATH"),
]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SweepReport, Path, SweepPages]]:
    """A parent run with the report of 12 trials, each a nested run."""
    folder = tmp_path_factory.mktemp("sweep")
    with MlflowServer(tmp_path_factory.mktemp("mlflow")) as server, browser() as driver:
        client = MlflowClient(server.uri)
        experiment = client.create_experiment("sweeps")
        parent = client.create_run(experiment, run_name="sweep-of-twelve").info.run_id
        trials = []
        for trial in grid():
            tags = {"mlflow.parentRunId": parent}
            run_id = client.create_run(experiment, run_name=trial.name, tags=tags).info.run_id
            trials.append(dataclasses.replace(trial, run_id=run_id))
        report = write_report(trials, folder)
        log_report(report, folder, server.uri, parent)
        yield report, folder, SweepPages(driver, server.uri, parent)


def test_the_pages_show_the_leaderboard_the_pictures_and_the_tree(
    sweep: tuple[SweepReport, Path, SweepPages],
) -> None:
    report, folder, pages = sweep
    header, rows = leaderboard(report)
    means = [row[header.index("mIoU")] for row in rows]

    pages.open_overview()
    assert all(mean in pages.text() for mean in means) and "best_configuration_miou" in pages.text()

    pages.open_artifact("leaderboard.json")
    pages.until(lambda: len(pages.table_rows()) > len(rows))
    shown = [row for row in pages.table_rows() if row]
    assert [[float(row[3]), float(row[4])] for row in shown] == [
        [pytest.approx(each.mean, abs=0.006), pytest.approx(each.deviation, abs=0.006)]
        for each in report.configurations
    ]

    pages.open_artifact("report/parallel_coordinates.png")
    with Image.open(folder / "parallel_coordinates.png") as picture:
        assert pages.shown_picture() == picture.size

    pages.open_run_list()
    expected = {"sweep-of-twelve", *(trial.name for trial in report.trials)}
    pages.until(lambda: set(pages.listed_runs()) == expected)
