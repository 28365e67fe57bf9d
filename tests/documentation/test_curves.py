"""The table of curves in docs/reviewing.md names what a run logs, and nothing else."""

import re
from fnmatch import fnmatch
from pathlib import Path

from mlflow import MlflowClient

from pipelines.tracking.places import database_uri
from pipelines.tracking.runs import RunIdentity
from pipelines.tracking.tracker import Tracker
from tests.support.lone_worker import lone_config, train_alone
from tests.support.pages import ROOT

OF_SEVERAL_WORKERS = {"slowest_rank", "slowest_rank_wait_share"}


def documented() -> set[str]:
    page = (ROOT / "docs/reviewing.md").read_text()
    _, table = page.split("| `train/…` |")
    cells = [line.split("|")[1] for line in table.split("\n\n")[0].splitlines()[2:]]
    return {name for cell in cells for name in re.findall(r"`(.+?)`", cell)}


def test_the_table_of_curves_is_complete(tmp_path: Path) -> None:
    uri = database_uri(f"{tmp_path}/mlflow.db")
    tracker = Tracker(RunIdentity(uri=uri, experiment="e", run_name="r", job_id="j"), tmp_path / "tracking")
    train_alone(lone_config(tmp_path, log_every_n_steps=1), tmp_path, tracker)
    assert tracker.close() and tracker.run_id is not None
    metrics = MlflowClient(uri).get_run(tracker.run_id).data.metrics
    logged = {name.removeprefix("train/") for name in metrics if name.startswith("train/")}
    patterns = documented() - OF_SEVERAL_WORKERS
    assert all(any(fnmatch(name, pattern) for pattern in patterns) for name in logged), logged - patterns
    assert all(any(fnmatch(name, pattern) for name in logged) for pattern in patterns), patterns - logged
    assert documented() > OF_SEVERAL_WORKERS
