"""Sweeps: what the searchers and schedulers remember, and real ones on a real Ray, with a real MLflow database."""

import contextlib
import csv
import dataclasses
import functools
import io
import json
import math
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient
from ray.tune.schedulers import TrialScheduler

from pipelines.cli.main import main
from pipelines.cli.requests import sweep_request
from pipelines.runs.evaluations import EvaluationRecord, read_record, write_record
from pipelines.runs.folder import RunFolder
from pipelines.sweeps.folder import Known, SweepFolder
from pipelines.sweeps.lineage import current_run, exploited_run
from pipelines.sweeps.optuna_search import OptunaTrials
from pipelines.sweeps.plan import METRIC, TIME, Sweep, TrialSpec, plan_sweep
from pipelines.sweeps.record import TrialRecord
from pipelines.sweeps.search import ListedTrials, scheduler_of
from pipelines.sweeps.space import Choice, Range
from pipelines.sweeps.sweep import warn_of_crowd
from pipelines.training.pretrain import pretrain
from tests.support.dataset_folder import damage_files, make_dataset
from tests.support.scenes_folder import write_scenes
from tests.support.training_state import training_state

NUM_CPUS = 7
OF_TRIALS = ("ray::ImplicitFunc", "ray::MapWorker(MapBatches(_SliceLoader)")
"""How the titles of the processes begin that train a trial with one worker and load its data."""

pytestmark = pytest.mark.timeout(900)  # starting Ray's processes takes minutes on a machine that is busy


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("data")
    return [
        *("--base", "debug", "--data", make_dataset(folder / "train", 64).uri),
        *("--evaluation.root", str(write_scenes(folder / "scenes", 8)), "--evaluation.num-pictures", "1"),
        *("--ingest.slice-size", "16", "--training.global-batch-size", "16", "--tracking.experiment", "sweeps"),
        *("--tracking.system-metrics-every-n-seconds", "None"),
    ]


def make_sweep(flags: list[str], runs: Path, *more: str, **changes: Any) -> Sweep:
    given = [*flags, "--training.runs-folder", str(runs), "--num-steps", "9", "--rung-every-n-steps", "1", *more]
    config, space = sweep_request(["debug", *given])
    return plan_sweep(config, dataclasses.replace(space, **changes))


def test_more_trials_than_cores_are_warned_of(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    warn_of_crowd(make_sweep(flags, tmp_path, "--max-concurrent", "2"), cores=2)
    assert not capsys.readouterr().err
    warn_of_crowd(make_sweep(flags, tmp_path, "--max-concurrent", "8"), cores=2)
    assert "max_concurrent=8: training workers would keep 8 cores busy" in capsys.readouterr().err


def names_of_processes() -> list[str]:
    """The title of every process below this one."""
    names = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            names += process.cmdline()[:1]
    return names


def write_state(step: int, folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps(training_state(step) | {"job_id": "another trial's"}))


def ended(spec: TrialSpec, scores: dict[int, float], **changes: Any) -> Known:
    record = TrialRecord(name=spec.name, values=spec.values, seed=spec.seed, status="finished", scores=scores)
    return Known(spec=spec, record=dataclasses.replace(record, **changes), settled=True)


def test_asha_stops_by_the_rungs_of_trials_that_ended_before_a_restart(flags: list[str], tmp_path: Path) -> None:
    sweep = make_sweep(flags, tmp_path, "--scheduler", "asha")
    over = [ended(spec, {1: 50.0, 3: 60.0, 9: 70.0}) for spec in sweep.grid()[:3]]
    for past, action in (([], TrialScheduler.CONTINUE), (over, TrialScheduler.STOP)):
        scheduler = scheduler_of(sweep, past)
        trial: Any = dataclasses.make_dataclass("Trial", ["trial_id"])("new")
        controller: Any = None
        scheduler.on_trial_add(controller, trial)
        assert scheduler.on_trial_result(controller, trial, {TIME: 1, METRIC: 49.0}) == action


def test_draws_go_on_with_what_is_new(flags: list[str], tmp_path: Path) -> None:
    axes = (Range(name="loss.multi_label_weight", low=0.1, high=1.0),)
    sweep = make_sweep(flags, tmp_path, "--budget", "6", "--num-seeds", "2", axes=axes)
    proposer = ListedTrials(sweep.draws(), {})
    first = [spec for _ in range(6) if (spec := proposer.propose()) is not None]
    assert [spec.seed for spec in first] == [0, 1] * 3 and len({spec.configuration for spec in first}) == 3
    again = ListedTrials(sweep.draws(), {spec.name: ended(spec, {}) for spec in first[:3]})
    assert [again.propose() for _ in range(3)] == first[3:]


def test_optuna_learns_also_from_what_ended_before_a_restart(flags: list[str], tmp_path: Path) -> None:
    axes = (
        Choice.of("model.image.assignment", "hard", "soft"),
        Range(name="loss.multi_label_weight", low=0.0, high=8.0),
    )
    sweep = make_sweep(flags, tmp_path, "--searcher", "optuna", "--budget", "100", "--num-seeds", "2", axes=axes)
    known: dict[str, Known] = {}
    tried: list[float] = []
    for _ in range(2):  # the second is the restart
        proposer = OptunaTrials(sweep, known)
        for one in known.values():
            proposer.learn(one.spec, one.record.score)
        for _ in range(30):
            spec = proposer.propose()
            assert spec is not None and spec.name not in known
            weight = spec.values["loss.multi_label_weight"]
            tried.append(weight)
            known[spec.name] = ended(spec, {9: 90 - 10 * abs(weight - 6)})
            proposer.learn(spec, known[spec.name].record.score)
    assert all(a == b for a, b in zip(tried[::2], tried[1::2], strict=True)), "both seeds of each"
    before, after = tried[:20], tried[30:]
    assert sum(abs(w - 6) for w in after) / len(after) < sum(abs(w - 6) for w in before) / len(before)


def test_a_trial_of_a_population_goes_on_from_anothers_checkpoint(flags: list[str], tmp_path: Path) -> None:
    sweep = make_sweep(flags, tmp_path, "--scheduler", "pbt")
    weak, strong = sweep.grid()[:2]
    SweepFolder(sweep).start_or_continue()
    source = RunFolder(f"{sweep.uri}/{strong.name}")
    for step in (1, 2):
        source.save_checkpoint(step, functools.partial(write_state, step))
    write_record(source, EvaluationRecord(scores={1: 10.0, 2: 20.0}))
    pointer = {"run": strong.name, "step": 1}
    changed = {**strong.point, "optimizer.learning_rate": "0.0001"}

    assert exploited_run(sweep, weak.name, weak.point, None) == weak.name
    name = exploited_run(sweep, weak.name, changed, pointer)
    assert name == f"{weak.name}-g1"
    run = RunFolder(f"{sweep.uri}/{name}")
    assert run.read_state(1)["step"] == 1 and "job_id" not in run.read_state(1)
    assert run.latest_step() == 1 and read_record(run).scores == {1: 10.0}
    # Its node is lost, or the driver killed: it goes on with that run.
    assert exploited_run(sweep, weak.name, changed, pointer) == name
    assert exploited_run(sweep, weak.name, changed, None) == name
    assert current_run(sweep, weak.name, weak.point) == (name, changed)
    # Paused by Tune, and another time the weaker one.
    assert exploited_run(sweep, weak.name, changed, {"run": name, "step": 1}) == name
    assert exploited_run(sweep, weak.name, weak.point, {"run": strong.name, "step": 2}) == f"{weak.name}-g2"


def parent_and_children(runs: Path, summary: dict[str, Any]) -> tuple[Any, list[Any]]:
    """The sweep's run and its nested ones; there are no others."""
    client = MlflowClient(f"sqlite:///{runs}/mlflow.db")
    experiment = client.get_experiment_by_name("sweeps")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], f"tags.`groupvit.sweep` = '{summary['sweep']}'")
    parents = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    assert [run.info.run_id for run in parents] == [summary["mlflow_run_id"]]
    children = [run for run in found if run.data.tags.get("mlflow.parentRunId") == summary["mlflow_run_id"]]
    assert len(children) + 1 == len(found)
    return parents[0], children


@pytest.mark.slow
def test_a_sweep_from_grid_to_leaderboard(
    flags: list[str], tmp_path: Path, cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sweep", "debug", *flags, "--training.runs-folder", str(tmp_path), "--num-steps", "4"]
    command += ["--rung-every-n-steps", "2", "--max-concurrent", "2", "--json"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "sweep-debug: 4 of 4 trials done, 0 running  best mIoU" in shown
    summary = json.loads(shown.splitlines()[-1])
    assert summary["counts"] == {"finished": 4, "stopped": 0, "failed": 0}

    parent, children = parent_and_children(tmp_path, summary)
    assert parent.info.status == "FINISHED" and len(children) == 4
    assert {run.info.status for run in children} == {"FINISHED"}
    assert {run.data.tags["groupvit.rung"] for run in children} == {"4"}
    assert {run.data.tags["groupvit.seed"] for run in children} == {"0"}
    by_name = {run.info.run_name: run for run in children}
    folder = tmp_path / "sweep-debug"
    best = -math.inf
    for trial in summary["trials"]:
        scores = read_record(RunFolder(str(folder / trial["name"]))).scores
        assert sorted(scores) == [2, 4]
        assert {int(step): score for step, score in trial["scores"].items()} == scores
        metrics = by_name[trial["name"]].data.metrics
        assert metrics["evaluation/miou"] == pytest.approx(scores[4])
        best = max(best, scores[4])
    assert summary["metrics"]["best_miou"] == pytest.approx(best)
    rows = list(csv.reader(io.StringIO((folder / "report" / "leaderboard.csv").read_text())))
    assert len(rows) == 5

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    version = client.get_model_version_by_alias("debug", "best")
    assert version.run_id == summary["mlflow_run_id"]
    assert summary["registered_model"] == f"models:/debug/{version.version}"

    # The same again answers at once, with the same; another value is refused.
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == summary  # its seconds, too: nothing was done
    assert main([*command, "--optimizer.weight-decay", "0.5"]) == 2
    assert "optimizer.weight_decay=0.5, but sweep 'sweep-debug' was started with 0.05" in capsys.readouterr().err


@pytest.mark.slow
def test_a_trial_trains_as_the_run_it_is(
    flags: list[str], tmp_path: Path, cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """In its own process with one worker, on workers of Ray Train with two: the weights of `pretrain`, bit by bit."""
    for num_workers in ("1", "2"):
        name = f"of-{num_workers}"
        more = ["--num-steps", "4", "--rung-every-n-steps", "4", "--budget", "1", "--name", name]
        more += ["--training.num-workers", num_workers, "--ingest.slice-size", "8"]
        assert main(["sweep", "debug", *flags, "--training.runs-folder", str(tmp_path), *more, "--json"]) == 0
        summary = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert summary["counts"] == {"finished": 1, "stopped": 0, "failed": 0}
        sweep = make_sweep(flags, tmp_path, *more)
        [spec] = sweep.grid()
        alone = pretrain(sweep.experiment(spec, "alone"))
        weights = [
            Path(folder, "model.safetensors").read_bytes()
            for folder in (alone["checkpoint"], SweepFolder(sweep).run(spec).checkpoint_uri(4))
        ]
        assert weights[0] == weights[1]


@pytest.mark.slow
def test_a_trial_that_cannot_go_on_says_why_in_one_line(
    flags: list[str], tmp_path: Path, cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Images that cannot be decoded, and a file that is damaged since it was written; with one worker and with two."""
    blurred = make_dataset(tmp_path / "blurred", 64, corrupt=range(0, 64, 2))
    damaged = make_dataset(tmp_path / "damaged", 64)
    damage_files(damaged)
    expected = {blurred.uri: "images were corrupt", damaged.uri: "is corrupted or incomplete"}
    for number, (uri, num_workers) in enumerate([(blurred.uri, "1"), (damaged.uri, "1"), (damaged.uri, "2")]):
        more = ["--data", uri, "--training.runs-folder", str(tmp_path), "--num-steps", "4", "--budget", "1"]
        more += ["--training.num-workers", num_workers, "--ingest.slice-size", "8", "--name", f"fails-{number}"]
        more += ["--training.max-failures", "0"]
        assert main(["sweep", "debug", *flags, *more, "--json"]) == 1
        shown = capsys.readouterr()
        [line] = [line for line in shown.out.splitlines() if line.startswith("failed: ")]
        assert expected[uri] in line
        [error] = [line for line in shown.err.splitlines() if "no trial could go on; " in line]
        assert expected[uri] in error and "another --name" in error
        assert "Traceback" not in shown.out + shown.err


@pytest.mark.slow
def test_a_population_goes_on_from_its_best(
    flags: list[str], tmp_path: Path, cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four trials, two at a time: weak ones go on from a strong one's checkpoint, and each stays one run in MLflow."""
    command = ["sweep", "debug", *flags, "--training.runs-folder", str(tmp_path), "--scheduler", "pbt", "--num-steps"]
    command += ["8", "--rung-every-n-steps", "2", "--training.log-every-n-steps", "1", "--max-concurrent", "2"]
    command += ["--name", "population", "--json"]
    assert main(command) == 0
    shown = capsys.readouterr()
    summary = json.loads(shown.out.splitlines()[-1])
    assert summary["counts"] == {"finished": 4, "stopped": 0, "failed": 0}
    folder = tmp_path / "population"
    names = {trial["name"] for trial in summary["trials"]}
    lineages = {file.stem: json.loads(file.read_text()) for file in (folder / "lineage").iterdir()}
    assert lineages and set(lineages) <= names
    for name, lineage in lineages.items():
        for number, one in enumerate(lineage, 1):
            assert one["run"] == f"{name}-g{number}" and not one["from"].startswith(name)
            assert one["step"] in read_record(RunFolder(str(folder / one["run"]))).scores
        assert RunFolder(str(folder / lineage[-1]["run"])).latest_step() == 8

    _, children = parent_and_children(tmp_path, summary)
    assert {run.info.run_name for run in children} == names
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    for run in children:
        steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "train/loss")]
        assert steps == list(range(1, 9)), "each step once, and in order"
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == summary


@pytest.mark.slow
def test_a_trial_that_is_stopped_ends_with_all_its_processes(
    flags: list[str], tmp_path: Path, cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three trials are on record that were better than anything: the fourth must stop at its first rung."""
    more = ["--scheduler", "asha", "--num-steps", "20000", "--rung-every-n-steps", "10", "--name", "halved"]
    sweep = make_sweep(flags, tmp_path, *more)
    folder = SweepFolder(sweep)
    folder.start_or_continue()
    *others, last = sweep.grid()
    for number, spec in enumerate(others):
        folder.write_known(ended(spec, {10: 101.0, 20_000: 101.0}), number)
    command = ["sweep", "debug", *flags, "--training.runs-folder", str(tmp_path), *more, "--json"]
    seen: set[str] = set()
    ended_itself = threading.Event()

    def watch() -> None:
        while not ended_itself.wait(0.5):
            seen.update(names_of_processes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        assert main(command) == 0
    finally:
        ended_itself.set()
        watcher.join()
    assert all(any(name.startswith(kind) for name in seen) for kind in OF_TRIALS), seen
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["counts"] == {"finished": 3, "stopped": 1, "failed": 0}
    _, [child] = parent_and_children(tmp_path, summary)
    assert child.info.run_name == last.name and child.info.status == "KILLED"
    assert "is not among the best 1/3 of this rung (asha)" in child.data.tags["groupvit.stop_reason"]

    def left() -> list[str]:
        return [name for name in names_of_processes() if name.startswith(OF_TRIALS)]

    deadline = time.monotonic() + 120
    while left() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not left()
