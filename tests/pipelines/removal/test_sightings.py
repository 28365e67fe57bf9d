"""The steps at which `groupvit forget` says that runs have seen samples, against what real runs recorded."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli.main import main
from pipelines.dataset.format import open_dataset, write_dataset
from pipelines.runs.folder import RunFolder
from pipelines.runs.skipped import write_skipped
from pipelines.training.job import start_or_continue
from pipelines.training.pretrain import pretrain
from tests.support.dataset_folder import make_samples
from tests.support.small_run import BATCH, consumed, make_config

pytestmark = pytest.mark.timeout(900)  # starting Ray's processes takes minutes on a machine that is busy

NUM_CPUS = 3
NUM_STEPS, SKIPPED = 14, 3
"""Skipped is the number of a step, from 1."""
AMENDMENTS = ("from 6: data.weights=3,1", "skip 9:11")


def write_data(folder: Path, num_samples: int, seed: int, rows_per_group: int) -> list[dict[str, Any]]:
    rows = [
        {**row, "url": f"https://{seed}.example/{index}.jpg", "sha256": hashlib.sha256(row["image"]).hexdigest()}
        for index, row in enumerate(make_samples(num_samples, seed=seed))
    ]
    write_dataset(str(folder), rows, rows_per_group=rows_per_group, groups_per_file=3)
    return rows


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A folder with two data sets, and the rows of the first one."""
    folder = tmp_path_factory.mktemp("sightings")
    write_data(folder / "other", 40, 1, 8)
    return folder, write_data(folder / "data", 53, 2, 10)


@pytest.fixture(scope="module")
def trained(rows: tuple[Path, list[dict[str, Any]]], cluster: None) -> Path:
    """A run on a mixture with weights; and two that have only begun, on the first data set and on other data."""
    folder, runs = rows[0], rows[0] / "runs"
    for name, sources, weights in (
        ("mixture", ("other", "data"), (0.3, 0.7)),
        ("begun", ("data",), None),
        ("elsewhere", ("other",), None),
    ):
        config = make_config(str(folder / "data"), runs, name, num_workers=1, num_steps=NUM_STEPS)
        config = dataclasses.replace(
            config,
            amendments=AMENDMENTS if name == "mixture" else (),
            data=dataclasses.replace(
                config.data, sources=tuple(str(folder / source) for source in sources), weights=weights, seed=3
            ),
            tracking=dataclasses.replace(config.tracking, uri=f"sqlite:///{runs}/mlflow.db"),
        )
        if name != "mixture":
            start_or_continue(RunFolder(str(runs / name)), config, [open_dataset(uri) for uri in config.data.sources])
        else:
            pretrain(config)
            write_skipped(RunFolder(str(runs / name)), SKIPPED - 1, {"loss": 1.0, "grad_norm": 2.0, "median": 3.0})
    return runs


def asked(capsys: pytest.CaptureFixture[str], rows: tuple[Path, list[dict[str, Any]]], *flags: str) -> dict[str, Any]:
    report = rows[0] / "report.json"
    urls = [row["url"] for row in rows[1][:3]]
    command = ["forget", "--data", f"{rows[0]}/data", "--report", str(report), "--urls", *urls, *flags]
    assert main(command) in (0, 1)
    return json.loads(report.read_text()) | {"shown": "".join(capsys.readouterr())}


def test_the_steps_are_those_at_which_the_runs_consumed_the_samples(
    trained: Path, rows: tuple[Path, list[dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    hashes = [row["sha256"] for row in rows[1][20:50:3]]
    report = asked(capsys, rows, "--runs", str(trained), "--sha256", *hashes)
    gone = {sample["sample_id"] for sample in report["samples"]}
    assert gone == {row["sample_id"] for row in (*rows[1][:3], *rows[1][20:50:3])}
    begun, mixture = report["runs"]
    assert (begun["run"], begun["newest_step"], begun["seen"]) == (f"{trained}/begun", 0, [])
    assert report["runs_on_other_data"] == [f"{trained}/elsewhere"] and not report["runs_not_known"]

    samples = consumed(trained, "mixture")
    assert sum(len(ids) for ids, _ in samples.values()) == NUM_STEPS * BATCH
    recorded = sorted(
        (step + 1, sample, epoch)
        for (step, _), (ids, epochs) in samples.items()
        for sample, epoch in zip(ids, epochs, strict=True)
        if sample in gone
    )
    assert len(recorded) > 20 and len({epoch for *_, epoch in recorded}) >= 2
    assert sorted((visit["step"], visit["sample_id"], visit["epoch"]) for visit in mixture["seen"]) == recorded
    steps = [step for step, *_ in recorded]
    assert [visit["step"] for visit in mixture["seen"]] == steps
    skipped = (SKIPPED, 10, 11)
    assert all(visit["skipped"] == (visit["step"] in skipped) for visit in mixture["seen"])
    assert mixture["visits_in_skipped_steps"] == sum(step in skipped for step in steps) > steps.count(SKIPPED) > 0
    assert (mixture["run"], mixture["first_step"], mixture["last_step"]) == (f"{trained}/mixture", steps[0], steps[-1])
    assert (mixture["newest_step"], mixture["samples_seen"]) == (NUM_STEPS, len(gone))
    assert f"{trained}/mixture" in report["shown"]


def test_checkpoints_from_before_the_first_step_are_named(
    trained: Path, rows: tuple[Path, list[dict[str, Any]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of one sample that comes late: the older checkpoint does not know it, also if a skipped step consumed it."""
    steps: dict[str, int] = {}
    for (step, _), (ids, _) in sorted(consumed(trained, "mixture").items()):
        for sample in ids:
            steps.setdefault(sample, step + 1)
    late = next(row for row in rows[1] if steps.get(row["sample_id"], 0) >= 4)
    first = steps[late["sample_id"]]
    shutil.copytree(trained / "mixture", tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    newest = RunFolder(str(tmp_path / "run")).latest_step()
    shutil.copytree(checkpoints / f"step-{newest:08d}", checkpoints / f"step-{first - 1:08d}")
    command = ["forget", "--data", f"{rows[0]}/data", "--report", str(tmp_path / "report.json"), "--json"]
    command += ["--urls", late["url"], "--runs", str(tmp_path / "run")]
    assert main(command) == 0
    [run] = json.loads(capsys.readouterr().out.splitlines()[-1])["runs"]
    assert run["first_step"] == run["first_learned_step"] == first
    assert run["checkpoints_without"] == [first - 1]
    write_skipped(RunFolder(str(tmp_path / "run")), first - 1, {"loss": 1.0, "grad_norm": 2.0, "median": 3.0})
    assert main(command) == 0
    [run] = json.loads(capsys.readouterr().out.splitlines()[-1])["runs"]
    assert run["first_step"] == first < run["first_learned_step"]


def edit(uri: Path, change: dict[str, Any]) -> None:
    content = json.loads(uri.read_text())
    for name, value in change.items():
        *path, last = name.split("/")
        place = content
        for part in path:
            place = place[part]
        place[last] = value
    uri.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config/data/seed": 3, "config/data/weights": [1.0, 1.0]}, "the run followed another order"),
        ({"config/data/sources": ["/nowhere", "/nowhere"]}, "/nowhere: no dataset.json"),
        ({"config/data/sources": ["{folder}/data", "{folder}/data"]}, "changed since the run began"),
        ({"config/data/sources": ["one"], "amendments": []}, "has 2 digests for 1 data sets"),
        ({"config/data/other": 1}, "its config cannot be read (DataConfig has no field other"),
        ({"config/training/num_steps": 3, "amendments": []}, "has reached step 14, after its last one"),
        ({"fixed/data.digests": "x"}, "does not say on which data sets"),
        ({"config": 3}, "run.json is corrupted"),
        ({"config/training/num_steps": 3}, "is beyond training.num_steps=3"),
        ({"amendments": []}, "the run followed another order"),
        (
            {"amendments": [{"text": "x", "by": "", "at": "", "from_step": 0, "after_step": 0}]},
            "'x' is not an amendment",
        ),
        ({"config/training/global_batch_size": 0}, "no order of samples has batches of 0"),
        ({"config/ingest/window_size": 10**12}, "windows of 1000000000000"),
    ],
)
def test_a_run_that_cannot_be_known_is_said_beside_the_others(
    trained: Path,
    rows: tuple[Path, list[dict[str, Any]]],
    tmp_path: Path,
    change: dict[str, Any],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(trained / "mixture", tmp_path / "mixture")
    changed = json.loads(json.dumps(change).replace("{folder}", str(rows[0])))
    edit(tmp_path / "mixture" / "run.json", changed)
    report = tmp_path / "report.json"
    command = ["forget", "--data", f"{rows[0]}/data", "--report", str(report), "--urls", rows[1][0]["url"]]
    assert main([*command, "--runs", str(tmp_path / "mixture"), str(trained / "begun")]) == 1
    shown = capsys.readouterr().err.splitlines()[-1]
    assert "of 1 of 2 runs it is not known what they have seen: " in shown and message in shown
    content = json.loads(report.read_text())
    assert [Path(run["run"]).name for run in content["runs"]] == ["begun"]
    assert message in content["runs_not_known"][0]["reason"]


def test_runs_on_what_the_data_set_was_made_from_are_pointed_out(
    trained: Path, rows: tuple[Path, list[dict[str, Any]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "made"
    assert main(["forget", "--data", f"{rows[0]}/data", "--out", str(made), "--urls", rows[1][0]["url"]]) == 0
    command = ["forget", "--data", str(made), "--report", str(tmp_path / "report.json"), "--urls", rows[1][1]["url"]]
    assert main([*command, "--runs", str(trained / "begun")]) == 1
    assert f"trains on {rows[0]}/data, from which {made} was made: give that one as data" in capsys.readouterr().err


def test_mlflow_knows_the_same_of_runs_whose_folders_are_gone(
    trained: Path, rows: tuple[Path, list[dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"sqlite:///{trained}/mlflow.db"
    [known] = asked(capsys, rows, "--runs", str(trained / "mixture"))["runs"]
    report = asked(capsys, rows, "--tracking-uri", uri)
    [found] = report["runs"]
    assert found["run"].startswith("MLflow run ") and found["checkpoints_without"] is None
    assert found["newest_step"] == NUM_STEPS and len(found["seen"]) > 5
    assert found["seen"] == [
        visit | {"skipped": visit["skipped"] and visit["step"] != SKIPPED} for visit in known["seen"]
    ]
    assert not report["runs_not_known"] and not report["runs_on_other_data"]
    both = asked(capsys, rows, "--tracking-uri", uri, "--runs", str(trained / "mixture"))
    assert [run["run"] for run in both["runs"]] == [f"{trained}/mixture"]


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("sqlite:///{tmp}/none.db", "none.db: there is no such database"),
        ("sqlite:///{tmp}/file", "the file is not a SQLite database"),
        ("http://127.0.0.1:1", "tracking_uri=http://127.0.0.1:1: "),
    ],
)
def test_an_mlflow_that_is_none_is_said_before_the_work(
    rows: tuple[Path, list[dict[str, Any]]],
    tmp_path: Path,
    uri: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").write_text("no database at all, but long enough to be looked at\n" * 30)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    before = sorted(tmp_path.iterdir())
    command = ["forget", "--data", f"{rows[0]}/data", "--out", str(tmp_path / "out"), "--urls", rows[1][0]["url"]]
    assert main([*command, "--tracking-uri", uri.format(tmp=tmp_path)]) == 2
    shown = capsys.readouterr().err
    assert message in shown and shown.startswith("groupvit: error: ") and shown.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before
