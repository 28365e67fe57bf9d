"""The report of a sweep: numbers computed again by other means, files that are what they seem, and a real MLflow
server."""

import csv
import io
import itertools
import json
import math
import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image
from scipy import stats

from pipelines.sweeps.record import TrialRecord
from pipelines.sweeps.report.leaderboard import PICTURES, log_report, summarise, table, write_report
from pipelines.sweeps.report.summary import short_names, text
from tests.support.mlflow_server import MlflowServer
from tests.support.trial_records import ASSIGNMENT, NOUNS, grid, trial


def mixed() -> list[TrialRecord]:
    """40 trials as a scheduler leaves them: most are stopped early, and what there is in values is odd."""
    rng = random.Random(1)
    trials = []
    for index in range(40):
        rate = 10 ** rng.uniform(-5, -2)
        depths = rng.choice([((6, 3, 3), (1,)), ((12,), (1,))])
        values = {"optimizer.learning_rate": rate, "model.image.depths": depths, "segmentation.templates": None}
        values |= {"a.very_long_name_that_goes_on_and_on_for_ever_and_a_day": rng.choice(["x" * 60, "ÄÖ | ,", ""])}
        num_rungs = rng.choice([1, 1, 2, 3])
        status = "finished" if num_rungs == 3 else rng.choice(["stopped", "stopped", "failed", "running"])
        scores = [(rung + 1) * (20 - 5 * abs(math.log10(rate) + 3.5)) / 3 for rung in range(num_rungs)]
        trials.append(trial(f"t{index}", values, 0, scores, status=status))
    return [*trials, trial("unscored", {"optimizer.learning_rate": 1.0}, 0, [], status="failed", stop_reason="no room")]


def test_means_and_deviations_are_those_of_the_statistics_module() -> None:
    trials = grid()
    random.Random(3).shuffle(trials)
    report = summarise(trials)
    expected = {}
    for assignment, num_nouns in itertools.product(("hard", "soft"), (0, 3)):
        scores = [
            each.scores[200]
            for each in trials
            if each.values[ASSIGNMENT] == assignment and each.values[NOUNS] == num_nouns
        ]
        expected[assignment, num_nouns] = (statistics.mean(scores), statistics.stdev(scores), len(scores))
    found = {
        (each.values[ASSIGNMENT], each.values[NOUNS]): (each.mean, each.deviation, len(each.scores))
        for each in report.configurations
    }
    assert found == {key: pytest.approx(value) for key, value in expected.items()}
    assert [each.mean for each in report.configurations] == sorted((v[0] for v in expected.values()), reverse=True)
    assert report.best is not None and report.best.score == max(each.scores[200] for each in trials)
    assert report.varied == (ASSIGNMENT, NOUNS)
    first, *others = report.configurations
    assert [trial.seed for trial in first.trials] == [0, 1, 2]
    p_values = [stats.ttest_ind(list(first.scores.values()), list(e.scores.values()), equal_var=False) for e in others]
    raw = [float(np.asarray(result)[1]) for result in p_values]
    assert [each.p_value for each in others] == pytest.approx(holm_by_definition(raw))


def holm_by_definition(p_values: Sequence[float]) -> list[float]:
    """A p-value is the largest of (number of p-values not smaller) × p over all that are not larger."""
    return [
        min(1.0, max(sum(other >= each for other in p_values) * each for each in p_values if each <= p_value))
        for p_value in p_values
    ]


def test_seeds_share_is_that_of_an_analysis_of_variance() -> None:
    report = summarise(grid())
    groups = [list(each.scores.values()) for each in report.configurations]
    f_value = float(np.asarray(stats.f_oneway(*groups))[0])
    between, within = len(groups) - 1, sum(map(len, groups)) - len(groups)
    assert report.seed_share == pytest.approx(1 / (1 + f_value * between / within))


def test_one_seed_has_no_deviation_and_proves_nothing() -> None:
    report = summarise(grid(num_seeds=1))
    assert [each.deviation for each in report.configurations] == [None] * 4
    assert "cannot be told" in report.verdict() and report.seed_share is None
    assert "best_configuration_deviation" not in report.metrics()
    rows = table(report).splitlines()
    columns = rows[1].split()
    assert dict(zip(columns, rows[3].split(), strict=False))["sd"] == "-"


def test_a_clear_difference_is_said_and_a_small_one_is_said_to_be_chance() -> None:
    def pair(gap: float) -> str:
        trials = [trial(f"{x}-{s}", {"x": x}, s, [10 + gap * x + s]) for x in (0, 1) for s in range(4)]
        return summarise(trials).verdict()

    assert "is more than chance" in pair(20) and "may be chance" in pair(0.1)


def test_importance_finds_what_matters_and_is_silent_on_little() -> None:
    shares = summarise(grid()).importance.shares
    assert shares[ASSIGNMENT] > 0.9 and shares[NOUNS] < 0.05 and sum(shares.values()) <= 1 + 1e-6
    trials = grid()
    random.Random(0).shuffle(trials)
    assert summarise(trials).importance.shares == shares, "the order of trials does not matter"
    few = summarise(grid(num_seeds=1)).importance
    assert not few.shares and "4 scores of 4 configurations are too few" in few.note
    one = summarise([trial(f"{x}-{s}", {"x": x}, s, [x]) for x in range(5) for s in range(3)]).importance
    assert not one.shares and "only x was varied" in one.note
    equal = [trial(f"{x}-{y}", {"x": x, "y": y}, 0, [7.0]) for x in range(4) for y in range(4)]
    assert "all scores are equal" in summarise(equal).importance.note


def test_importance_compares_scores_of_one_rung_only() -> None:
    trials = mixed()
    reached = {step: sum(step in each.scores for each in trials) for step in (100, 200, 400)}
    assert reached[400] < 12 <= reached[200] < 40, "3 parameters take 12 scores, and step 200 is the last with as many"
    report = summarise(trials)
    assert f"over {reached[200]} trials, mIoU at step 200" in report.importance.note
    assert max(report.importance.shares, key=lambda name: report.importance.shares[name]) == "optimizer.learning_rate"


def test_unfinished_trials_are_listed_but_not_averaged() -> None:
    trials = [
        trial("a0", {"x": 1}, 0, [5.0, 9.0]),
        trial("a1", {"x": 1}, 1, [30.0], status="stopped", stop_reason="asha"),
        trial("b0", {"x": 2}, 0, [40.0], status="running"),
        trial("c0", {"x": 3}, 0, [math.nan], status="finished"),
        trial("d0", {"x": 4}, 0, [], status="failed", stop_reason="out of memory"),
    ]
    report = summarise(trials)
    assert [each.mean for each in report.configurations] == [9.0, None, None, None]
    assert report.best is not None and report.best.name == "a0"
    assert report.metrics()["num_stopped"] == report.metrics()["num_failed"] == 1
    shown = table(report)
    assert "failed: d0: out of memory" in shown and "40.00 at 100" in shown and "nan" not in shown
    assert summarise(trials[2:3]).best is trials[2]


def test_values_that_went_through_json_are_the_same_configuration() -> None:
    trials = [trial("a", {"d": (6, 3)}, 0, [1.0]), trial("b", {"d": [6, 3]}, 1, [3.0])]
    [configuration] = summarise(trials).configurations
    assert configuration.mean == 2.0


def test_names_and_values_are_short_but_never_ambiguous() -> None:
    names = ["model.image.width", "model.text.width", "optimizer.learning_rate"]
    assert short_names(names) == dict(zip(names, ["image.width", "text.width", "learning_rate"], strict=True))
    assert [text(value) for value in (((6, 3), (1,)), 1e-5, None, True, (), "a")] == [
        "6-3 / 1",
        "1e-05",
        "none",
        "True",
        "()",
        "a",
    ]


@pytest.mark.parametrize("make", [list, lambda: grid()[:1], grid, mixed], ids=["none", "one", "grid", "mixed"])
def test_files_are_whole_in_any_state_of_the_sweep(make: Any, tmp_path: Path) -> None:
    trials = make()
    report = write_report(trials, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {
        *(f"{name}.png" for name in PICTURES),
        *(f"leaderboard.{ending}" for ending in ("csv", "md", "json")),
    }
    summary = json.loads((tmp_path / "leaderboard.json").read_text(), parse_constant=pytest.fail)
    assert [each["mean"] for each in summary["configurations"]] == [each.mean for each in report.configurations]
    assert len(summary["trials"]) == len(trials)
    header, *rows = csv.reader(io.StringIO((tmp_path / "leaderboard.csv").read_text()))
    assert {len(row) for row in rows} <= {len(header)} and len(rows) == len(report.configurations)
    for name in PICTURES:
        with Image.open(tmp_path / f"{name}.png") as picture:
            pixels = np.asarray(picture.convert("L"))
        assert pixels.std() > 1 or not trials, f"{name} is empty"
        assert pixels.shape[1] >= 700


def test_pictures_show_every_configuration_apart(tmp_path: Path) -> None:
    write_report(grid(), tmp_path)
    with Image.open(tmp_path / "leaderboard.png") as picture:
        colours = {tuple(colour) for colour in np.asarray(picture.convert("RGB")).reshape(-1, 3)}
    for rgb in ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167)):
        assert rgb in colours


@pytest.mark.timeout(600)  # the server needs seconds to start, or minutes on a machine that is busy
def test_report_in_mlflow_is_replaced_not_doubled(
    server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)  # by which `load_table` searches
    client = MlflowClient(server.uri)
    experiment = client.create_experiment("sweeps")
    run_id = client.create_run(experiment).info.run_id

    def images() -> list[str]:
        return [file.path for file in client.list_artifacts(run_id, "images") if file.path.endswith(".png")]

    trials = grid()
    unfinished = [*trials[:-1], trial(trials[-1].name, dict(trials[-1].values), 2, [1.0], status="running")]
    log_report(write_report(unfinished, tmp_path), tmp_path, server.uri, run_id)
    first = client.load_table(experiment, "leaderboard.json", [run_id])
    assert sorted(first["n"]) == [2, 3, 3, 3]
    assert len(images()) == len(PICTURES)

    for _ in range(2):  # the second time nothing may change
        report = write_report(trials, tmp_path)
        log_report(report, tmp_path, server.uri, run_id)
        found = client.load_table(experiment, "leaderboard.json", [run_id])
        assert found["mIoU"].tolist() == [pytest.approx(each.mean, abs=0.006) for each in report.configurations]
        assert len(client.load_table(experiment, "trials.json", [run_id])) == len(trials)
        data = client.get_run(run_id).data
        assert report.best is not None and data.metrics["best_miou"] == round(report.best.score or 0, 4)
        assert data.metrics["num_trials"] == len(trials) and data.metrics["num_finished"] == len(trials)
        assert [m.value for m in client.get_metric_history(run_id, "num_finished")] == [len(trials) - 1, len(trials)]
        assert len(images()) == 2 * len(PICTURES)
        assert "| rank | assignment |" in data.tags["mlflow.note.content"]
        assert {Path(file.path).name for file in client.list_artifacts(run_id, "report")} == {
            file.name for file in tmp_path.iterdir()
        }


def test_an_unreachable_server_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    report = write_report(grid()[:1], tmp_path)
    with pytest.raises(ValueError, match=r"^tracking_uri=http://127.0.0.1:9: [^\n]+$"):
        log_report(report, tmp_path, "http://127.0.0.1:9", "0" * 32)
