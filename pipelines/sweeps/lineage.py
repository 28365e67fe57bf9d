"""Population based training: a weak trial takes a strong one's checkpoint, and continues with changed values.

The values of a run cannot change. So each time, the trial gets a new run, which begins with a copy of the strong
trial's checkpoint and score: RUNS/SWEEP/TRIAL-g1, -g2, ... All of them are one run in MLflow.
RUNS/SWEEP/lineage/TRIAL.json records where each came from, so that a restart continues with the last one. Tune's own
"checkpoint" is only the name of a run and a step.

Only values on which neither a weight nor the optimiser's state depends are changed (plan.CHANGEABLE): rates, weights of
losses, crops. The new run does not log again the steps that the old one has already sent to MLflow.
"""

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ray.train
import ray.tune
from ray.tune.schedulers import PopulationBasedTraining

from groupvit.checkpoint_files import MODEL_FILE, OPTIMIZER_FILE, STATE_FILE, check_file, read_state, state_content
from pipelines import documents, storage
from pipelines.runs.evaluations import EvaluationRecord, read_record, write_record
from pipelines.runs.folder import JOB_ID, RunFolder
from pipelines.sweeps.contents import Ancestor, Pointer
from pipelines.sweeps.plan import CHANGEABLE, METRIC, TIME, Sweep
from pipelines.sweeps.space import Choice, Point, Space

_POINTER = "pointer.json"


def changeable_axes(space: Space) -> list[Any]:
    """Return the axes whose values may change during training."""
    return [axis for axis in space.axes if all(field in CHANGEABLE for field in axis.fields)]


def population_scheduler(sweep: Sweep) -> PopulationBasedTraining:
    rung = sweep.space.base.evaluation.every_n_steps
    assert rung is not None
    axes = changeable_axes(sweep.space)
    mutations: dict[str, Any] = {
        axis.name: list(axis.options)
        if isinstance(axis, Choice)
        else ray.tune.loguniform(axis.low, axis.high)
        if axis.log
        else ray.tune.uniform(axis.low, axis.high)
        for axis in axes
    }

    def within(parameters: dict[str, Any]) -> dict[str, Any]:
        """Clip the values to their ranges: Tune multiplies by 0.8 or 1.2, even beyond the range."""
        point = dict(parameters["trial"]["point"])
        for axis in axes:
            if not isinstance(axis, Choice):
                point[axis.name] = float(f"{min(max(point[axis.name], axis.low), axis.high):.3g}")
        return parameters | {"trial": parameters["trial"] | {"point": point}}

    return PopulationBasedTraining(
        time_attr=TIME,
        metric=METRIC,
        mode="max",
        perturbation_interval=rung,
        hyperparam_mutations={"trial": {"point": mutations}},
        custom_explore_fn=within,
        log_config=False,
    )


def current_run(sweep: Sweep, name: str, point: Point) -> tuple[str, Point]:
    """Return the run with which a trial continues, and its point: the last of its lineage, else its own."""
    lineage = _read_lineage(sweep, name)
    return (lineage[-1]["run"], lineage[-1]["point"]) if lineage else (name, point)


def exploited_run(sweep: Sweep, name: str, point: Point, pointer: Mapping[str, Any] | None) -> str:
    """Return the run of a trial that Tune starts with `point` from the checkpoint at `pointer`. Create it if it is
    new."""
    run_name, _ = current_run(sweep, name, point)
    lineage = _read_lineage(sweep, name)
    if pointer is None or pointer["run"] == run_name:
        return run_name
    origin = {"from": pointer["run"], "step": pointer["step"], "point": dict(point)}
    if lineage and {key: lineage[-1][key] for key in origin} == origin:
        return run_name  # its node was lost before its first rung
    new = f"{name}-g{len(lineage) + 1}"
    source, target = _run(sweep, pointer["run"]), _run(sweep, new)
    steps = source.checkpoint_steps()
    step = pointer["step"] if pointer["step"] in steps else max(steps)  # it may have continued and deleted that one
    with source.local_checkpoint(step) as folder:
        target.save_checkpoint(step, lambda place: _copy(folder, place))
    scores = {at: score for at, score in read_record(source).scores.items() if at == step}
    write_record(target, EvaluationRecord(scores=scores))
    content = json.dumps([*lineage, {"run": new, **origin}], indent=2) + "\n"
    storage.write_bytes(_lineage_uri(sweep, name), content.encode())  # last, when the run is complete
    return new


def read_pointer() -> dict[str, Any] | None:
    """Return the pointer that Tune starts this trial from; None if it starts from scratch."""
    checkpoint = ray.tune.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        return documents.read(str(Path(folder) / _POINTER), Pointer, "start the sweep under another --name")


@contextlib.contextmanager
def pointer_to(run_name: str, step: int) -> Iterator[ray.train.Checkpoint]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / _POINTER).write_text(json.dumps({"run": run_name, "step": step}), encoding="utf-8")
        yield ray.tune.Checkpoint(folder)


def _copy(source: Path, target: Path) -> None:
    """Copy a checkpoint for another run. Raise ValueError if it is damaged."""
    state = read_state(source)
    for name in (MODEL_FILE, OPTIMIZER_FILE):
        check_file(source, name, state)
    temporary = target.with_name(f".{target.name}.partial-copy")
    temporary.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        storage.write_bytes(str(temporary / file.name), file.read_bytes())
    state.pop(JOB_ID, None)
    storage.write_bytes(str(temporary / STATE_FILE), state_content(state))
    temporary.rename(target)


def _run(sweep: Sweep, name: str) -> RunFolder:
    return RunFolder(storage.join(sweep.uri, name))


def _read_lineage(sweep: Sweep, name: str) -> list[dict[str, Any]]:
    try:
        fix = "restore it, or start the sweep under another --name"
        return documents.read(_lineage_uri(sweep, name), list[Ancestor], fix)
    except FileNotFoundError:
        return []


def _lineage_uri(sweep: Sweep, name: str) -> str:
    return storage.join(sweep.uri, "lineage", f"{name}.json")
