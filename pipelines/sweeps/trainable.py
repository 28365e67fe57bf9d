"""One trial, as Ray Tune runs it: a whole pretraining run, whose evaluations are reported as rungs.

With several workers, it is a run of Ray Train. A single worker is the process of the trial itself.

A trial is an ordinary run. Its name follows from its values and seed, so a trial that is restarted, by Tune after a
lost node or by the next start of the sweep, resumes from its newest checkpoint. Recorded evaluations are reported at
once and not repeated.
"""

import dataclasses
import functools
import json
from typing import Any

import ray.tune

from pipelines import storage
from pipelines.runs.evaluations import read_record
from pipelines.runs.folder import RunFolder
from pipelines.sweeps.plan import METRIC, TIME, Sweep, TrialSpec
from pipelines.training.job import SweepLink

PARENT_TAG, SWEEP_TAG, SPACE_TAG, SEED_TAG = "mlflow.parentRunId", "groupvit.sweep", "groupvit.space", "groupvit.seed"
CONFIGURATION_TAG, TRIAL_TAG = "groupvit.configuration", "groupvit.trial"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrialTask:
    """What a trial needs besides its own values."""

    sweep: Sweep
    sweep_id: str
    parent_run_id: str | None
    """MLflow run of the sweep; None if tracking is off."""

    def sweep_link(self, name: str, spec: TrialSpec) -> SweepLink:
        """Return the links of a trial to its sweep. With pbt, `spec` may differ from the one that gave the trial its
        `name`."""
        tags = {
            SWEEP_TAG: self.sweep.name,
            SPACE_TAG: self.sweep.space.name,
            SEED_TAG: str(spec.seed),
            CONFIGURATION_TAG: spec.configuration,
            TRIAL_TAG: name,
            "mlflow.source.name": "groupvit sweep",
        }
        parent = {} if self.parent_run_id is None else {PARENT_TAG: self.parent_run_id}
        return SweepLink(job_id=f"{self.sweep_id}-{name}", tags=tags | parent)


def run_trial(parameters: dict[str, Any], *, task: TrialTask) -> None:
    """Train the trial to its end, unless Tune ends it at a rung. `parameters` is the suggestion of the searcher."""
    sweep = task.sweep
    # Not from `parameters`: with pbt, they belong to the trial whose checkpoint this one takes.
    name = ray.tune.get_context().get_trial_name()
    spec = sweep.spec(parameters["trial"]["point"], TrialSpec.seed_of(name))
    run_name, report = name, _report
    if sweep.config.scheduler == "pbt":
        from pipelines.sweeps.lineage import exploited_run, read_pointer

        run_name = exploited_run(sweep, name, spec.point, read_pointer())
        report = functools.partial(_report_with_pointer, run_name)
    config = sweep.experiment(spec, run_name)
    run = RunFolder(storage.join(sweep.uri, run_name))
    for step, score in sorted(read_record(run).scores.items()):
        report(step, score)
    from pipelines.training.pretrain import pretrain  # imports torch and more; recorded rungs need not wait

    try:
        # The evaluator's thread reports. The training continues until Tune's scheduler has decided. Tune then lets
        # the trial continue, or ends this process together with its workers and data tasks.
        pretrain(config, dataclasses.replace(task.sweep_link(name, spec), on_score=report))
    except (ValueError, storage.StorageRefusedError) as error:  # a restart would not help; the other trials continue
        content = json.dumps({"reason": " ".join(str(error).split())}) + "\n"
        storage.write_bytes(storage.join(sweep.uri, name, "failure.json"), content.encode())


def _report(step: int, score: float) -> None:
    """Report a rung to Tune: training step, and mIoU in percent."""
    ray.tune.report({TIME: step, METRIC: score})


def _report_with_pointer(run_name: str, step: int, score: float) -> None:
    """Report a rung, with a pointer from which another trial can continue."""
    from pipelines.sweeps.lineage import pointer_to

    with pointer_to(run_name, step) as checkpoint:
        ray.tune.report({TIME: step, METRIC: score}, checkpoint=checkpoint)
