"""Runs sweeps on Ray Tune, from the plan to the leaderboard.

    groupvit sweep paper_table_1 --base demo --evaluation.root data/stamps/validation

The same command resumes a sweep that was stopped or killed, and returns at once if it is complete. The driver plans and
records. A trial is a run of `pretrain` in a Tune function (trainable.py).
"""

import contextlib
import functools
import io
import logging
import os
import sys
import tempfile
import threading
import warnings
from pathlib import Path
from typing import Any

import ray
import ray.tune
from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE  # no option of Tune's says what it passes on

from pipelines import storage
from pipelines.cluster.session import check_room, ray_cluster, starts_here
from pipelines.dataset.format import DatasetInfo
from pipelines.errors import PartlyDone
from pipelines.local.folder_lock import only_one
from pipelines.local.writable import check_writable
from pipelines.runs.evaluations import read_record
from pipelines.sweeps.callbacks import Ends, SweepBook, Watch
from pipelines.sweeps.folder import SweepFolder, as_started, records_of
from pipelines.sweeps.plan import Sweep, TrialSpec
from pipelines.sweeps.search import TrialSearcher, proposer_of, scheduler_of
from pipelines.sweeps.trainable import TrialTask, run_trial
from pipelines.tracking.gauges import ascii_name
from pipelines.tracking.places import check_database
from pipelines.training.pretrain import open_datasets
from pipelines.training.ray_train import gpus_here, resources_per_worker, trains_in_place, uses_gpu

_SETTLE_EVERY_SECONDS = 5.0
_QUIET = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends this command, which then knows that the sweep is not complete
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial without a rung has no metric
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # otherwise it prints a line for every trial that ends
}


def sweep(planned: Sweep) -> dict[str, Any]:
    """Run the sweep to its end, or resume it, and return the summary that `--json` prints.

    ValueError, before any work, if the user's input is invalid. PartlyDone if trials failed in ways that may be
    temporary, or if all of them failed for good.
    """
    from pipelines.evaluation.checkpoint_evaluator import check_evaluation
    from pipelines.sweeps.optuna_search import check_optuna
    from pipelines.sweeps.tracking import start_parent

    planned = as_started(planned)
    base = planned.space.base
    if planned.searcher == "optuna":
        check_optuna()
    datasets = open_datasets(base)
    check_evaluation(base)
    folder = SweepFolder(planned)
    if folder.read_summary() is None:
        check_writable(planned.uri, "training.runs_folder")
        check_database(planned.tracking_uri, "tracking.uri")
    sweep_id = folder.start_or_continue()
    book = SweepBook(planned, folder)
    summary = folder.read_summary()
    if summary is not None and not book.may_begin() and all(known.is_over for known in book.known.values()):
        print(summary["table"])
        return summary
    if starts_here():
        _check_gpus(planned, gpus_here(base), "this machine")
        warn_of_crowd(planned, os.cpu_count() or 1)
    with only_one(planned.uri, "sweep"):
        parent = start_parent(planned, sweep_id)
        task = TrialTask(sweep=planned, sweep_id=sweep_id, parent_run_id=parent)
        settler = _Settler(task, folder, book, datasets)
        try:
            _run_trials(task, folder, book)
        finally:
            settler.finish()
            folder.write_seconds(book.seconds)
        return _conclude(task, folder, book)


def _run_trials(task: TrialTask, folder: SweepFolder, book: SweepBook) -> None:
    planned = task.sweep
    os.environ.update(_QUIET)
    # Tune would give these to trials by their runtime environment, which Ray writes to its logs.
    ENV_VARS_TO_PROPAGATE.difference_update([name for name in ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")])
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "Consider boosting PBT")  # a reused process would keep its old trial's state
    known = book.known
    pending = [each.spec for each in known.values() if not each.is_over]
    if not pending and not book.may_begin():
        return
    each = planned.resources_per_trial
    cpus = int(planned.config.max_concurrent * each["CPU"])
    with ray_cluster(least_cpus=cpus, show_logs=planned.space.base.training.show_ray_logs):
        resources = ray.cluster_resources()
        check_room("max_concurrent", planned.config.max_concurrent, each, resources, "the Ray cluster")
        gpus = resources.get("GPU", 0)
        _check_gpus(planned, gpus, "the Ray cluster")
        proposer = proposer_of(planned, known)
        for one in known.values():
            if one.is_over:
                proposer.learn(one.spec, one.record.score)
        searcher = TrialSearcher(pending, proposer, book.begin, book.may_begin, lambda spec: folder.current(spec)[1])
        over = [one for one in known.values() if one.is_over]
        population = searcher.suggest_all() if planned.config.scheduler == "pbt" else None
        say = functools.partial(print, file=sys.stdout, flush=True)
        # Tune's own output adds nothing to ours.
        with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
            # A restart needs nothing that Tune keeps. But the pointers of pbt must reach every node.
            kept = storage.join(planned.uri, "tune") if planned.config.scheduler == "pbt" else scratch
            ray.tune.Tuner(
                ray.tune.with_resources(
                    ray.tune.with_parameters(functools.partial(run_trial), task=task), _of_trial_process(planned, gpus)
                ),
                param_space=None if population is None else {"trial": ray.tune.grid_search(population)},
                tune_config=ray.tune.TuneConfig(
                    search_alg=searcher if population is None else None,
                    scheduler=scheduler_of(planned, over),
                    num_samples=-1 if population is None else 1,
                    max_concurrent_trials=planned.config.max_concurrent,
                    trial_name_creator=_trial_name,
                    trial_dirname_creator=_trial_name,
                ),
                run_config=ray.tune.RunConfig(
                    name=ascii_name(planned.name),
                    storage_path=kept,
                    failure_config=ray.tune.FailureConfig(max_failures=planned.config.max_failures),
                    callbacks=[Watch(planned, book, say)],
                    stop=Ends(planned, book),
                    verbose=0,
                ),
            ).fit()


def _of_trial_process(planned: Sweep, gpus: float) -> dict[str, float]:
    """Return what Tune reserves for a trial's process: a worker's share if the process is the worker, else nothing."""
    base = planned.space.base
    if not trains_in_place(base):
        return {"CPU": 0, "memory": 1}  # Tune requires something: one byte
    return resources_per_worker(base, use_gpu=uses_gpu(base, gpus))


def _trial_name(trial: Any) -> str:
    """Return the name for a trial that Tune creates. The trial keeps it."""
    return trial.config["trial"]["name"]


def warn_of_crowd(planned: Sweep, cores: int) -> None:
    """Warn if trials must share cores: a cluster started here may claim more CPUs than exist. Each trial needs memory,
    too."""
    training, at_a_time = planned.space.base.training, planned.config.max_concurrent
    busy = at_a_time * training.max_workers * training.cpus_per_worker
    if busy > cores:
        print(
            f"max_concurrent={at_a_time}: training workers would keep {busy} cores busy, and this machine has {cores}: "
            "fewer trials at a time need less memory and may be done as soon",
            file=sys.stderr,
        )


def _check_gpus(planned: Sweep, available: float, place: str) -> None:
    training = planned.space.base.training
    if uses_gpu(planned.space.base, available):
        number = planned.config.max_concurrent * training.min_workers
        check_room(
            "max_concurrent x training.num_workers",
            number,
            {"GPU": training.gpus_per_worker},
            {"GPU": available},
            place,
        )


def _conclude(task: TrialTask, folder: SweepFolder, book: SweepBook) -> dict[str, Any]:
    """Write the report, model and summary of a sweep whose trials are over."""
    from pipelines.sweeps.report.leaderboard import log_report, table, write_report
    from pipelines.sweeps.tracking import end_parent

    planned = task.sweep
    known = book.known
    records = records_of(known.values())
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        report = write_report(records, out)
        for file in sorted(out.iterdir()):
            storage.write_bytes(storage.join(folder.uri, "report", file.name), file.read_bytes())
        if task.parent_run_id is not None:
            log_report(report, out, planned.tracking_uri, task.parent_run_id)
    shown = table(report)
    print(shown)
    broken = [one.record for one in known.values() if one.record.status == "failed"]
    lasting = [one.record.name for one in known.values() if folder.read_failure(one.spec) is not None]
    model = None
    if report.best is not None and report.best.score is not None and planned.tracking_uri and task.parent_run_id:
        model = _register(known[report.best.name].spec, folder, planned, task.parent_run_id)
    summary = {
        "sweep": planned.name,
        "folder": folder.uri,
        "space": planned.space.name,
        "counts": {status: report.count(status) for status in ("finished", "stopped", "failed")},
        "mlflow_run_id": task.parent_run_id,
        "registered_model": model,
        "seconds": round(book.seconds, 1),
        **report.summary(),
        "table": shown,
    }
    passing = [record for record in broken if record.name not in lasting]
    in_vain = bool(broken) and len(broken) == len(records)
    end_parent(planned, task.parent_run_id, "FAILED" if passing or in_vain else "FINISHED")
    if passing:
        first = passing[0]
        raise PartlyDone(
            f"{len(passing)} of {len(records)} trials failed; the same command tries them again; {first.name}: "
            f"{first.stop_reason}",
            summary,
        )
    if in_vain:
        first = broken[0]
        reason = f"{first.name}: {first.stop_reason}; when that is fixed, give the sweep another --name"
        raise PartlyDone(f"no trial could go on; {reason}", summary)
    folder.write_summary(summary)
    return summary


def _register(best: TrialSpec, folder: SweepFolder, planned: Sweep, run_id: str) -> str | None:
    from pipelines.evaluation.checkpoint_evaluator import register_best

    run, base = folder.run(best), planned.space.base
    return register_best(base, run, read_record(run), run_id, planned.tracking_uri or "")


class _Settler:
    """A thread that tells MLflow how trials ended, so that Tune need not wait."""

    def __init__(self, task: TrialTask, folder: SweepFolder, book: SweepBook, datasets: list[DatasetInfo]) -> None:
        self._task, self._folder, self._book, self._datasets = task, folder, book, datasets
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="settle", daemon=True)
        if task.parent_run_id is not None:
            self._thread.start()

    def finish(self) -> None:
        """Settle the remaining trials."""
        self._ended.set()
        if self._task.parent_run_id is not None:
            self._thread.join()

    def _work(self) -> None:
        waiting: set[str] = set()
        while True:
            ended = self._ended.is_set()
            over = {name for name, one in self._book.known.items() if one.is_over and not one.settled}
            # Wait one round: until then, the processes of a stopped trial may still write.
            for name in sorted(over if ended else over & waiting):
                self._settle(name)
            waiting = over
            if ended:
                return
            self._ended.wait(_SETTLE_EVERY_SECONDS)

    def _settle(self, name: str) -> None:
        from pipelines.sweeps.tracking import settle

        run_id = settle(self._task, self._folder, self._book.known[name], self._datasets)
        if run_id is not None:
            self._book.settled(name, run_id)
