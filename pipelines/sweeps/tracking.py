"""A sweep in MLflow: a parent run, and a nested run per trial. Each is found again by a tag, and created only once."""

from mlflow import MlflowClient
from mlflow.entities import Param

from groupvit.config import flatten, to_dict
from pipelines.dataset.format import DatasetInfo
from pipelines.experiments.fixed import fixes_the_result
from pipelines.provenance import code_version, redact
from pipelines.sweeps.folder import Known, SweepFolder
from pipelines.sweeps.plan import Sweep
from pipelines.sweeps.trainable import SPACE_TAG, SWEEP_TAG, TrialTask
from pipelines.tracking.errors import one_line
from pipelines.tracking.places import artifacts_beside
from pipelines.tracking.runs import JOB_TAG, experiment_id, find_run, retry_few_requests
from pipelines.training.job import start_or_continue

RUNG_TAG, STOP_TAG = "groupvit.rung", "groupvit.stop_reason"
STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
"""MLflow status of a trial's run, by how the trial ended."""


def start_parent(sweep: Sweep, sweep_id: str) -> str | None:
    """Return the id of the sweep's run, which the first start creates and describes; None if tracking is off.

    ValueError if MLflow cannot be reached.
    """
    if sweep.tracking_uri is None:
        return None
    retry_few_requests()
    base = sweep.space.base
    with one_line(sweep.tracking_uri):
        client = MlflowClient(tracking_uri=sweep.tracking_uri)
        run = find_run(client, base.tracking.experiment, sweep_id)
        if run is None:
            tags = {
                JOB_TAG: sweep_id,
                SWEEP_TAG: sweep.name,
                SPACE_TAG: sweep.space.name,
                "mlflow.source.name": "groupvit sweep",
                "mlflow.source.git.commit": code_version(),
            }
            experiment = experiment_id(client, base.tracking.experiment, artifacts_beside(sweep.tracking_uri))
            run = client.create_run(experiment, run_name=sweep.name, tags=tags)
        run_id = run.info.run_id
        client.update_run(run_id, status="RUNNING")
        values = _params(sweep)
        params = [Param(name, value) for name, value in values.items() if name not in run.data.params]
        for start in range(0, len(params), 100):
            client.log_batch(run_id, params=params[start : start + 100])
    return run_id


def end_parent(sweep: Sweep, run_id: str | None, status: str) -> None:
    """End the sweep's run. ValueError if MLflow cannot be reached."""
    if run_id is None:
        return
    with one_line(sweep.tracking_uri):
        MlflowClient(tracking_uri=sweep.tracking_uri).set_terminated(run_id, status)


def settle(task: TrialTask, folder: SweepFolder, known: Known, datasets: list[DatasetInfo]) -> str | None:
    """Send data that the processes of an ended trial left unsent, and record in MLflow how the trial ended. Return the
    id of its run; None while MLflow is unavailable."""
    run_name, spec = folder.current(known.spec)
    config = task.sweep.experiment(spec, run_name)
    job = start_or_continue(folder.run(known.spec), config, datasets, task.sweep_link(known.record.name, spec))
    tracker, evaluation = job.open_tracker(system_metrics=False), job.open_evaluation_tracker()
    assert tracker is not None and evaluation is not None
    record = known.record
    rung = {} if not record.scores else {RUNG_TAG: str(max(record.scores))}
    tracker.set_tags(rung | ({} if record.stop_reason is None else {STOP_TAG: record.stop_reason}))
    sent = evaluation.close(None)
    return tracker.run_id if tracker.close(STATUS[record.status]) and sent else None


def _params(sweep: Sweep) -> dict[str, str]:
    fixed = sweep.fixed()
    of_base = fixes_the_result(sweep.space.base)
    own = {f"sweep.{name}" if name not in of_base else name: value for name, value in fixed.items()}
    free = flatten({"sweep": to_dict(sweep.config)})
    return {name: redact(str(value))[:6000] for name, value in {**own, **free}.items()}
