"""State of a sweep, on disk or in object storage, so that the same command resumes it wherever it was killed.

    RUNS/SWEEP/sweep.json            its id, and what cannot change
    RUNS/SWEEP/records/TRIAL.json    a trial, from before it starts: point, values, seed, scores, how it ended
    RUNS/SWEEP/seconds.json          how long the sweep has run, over all restarts
    RUNS/SWEEP/TRIAL/                the run of a trial, as of any pretraining (pipelines/runs)
    RUNS/SWEEP/report/               leaderboard and pictures
    RUNS/SWEEP/summary.json          written last: the sweep is complete

Only the driver writes here, except for the trials' runs. Ray Tune's own snapshots are not used, because they lag
behind: a trial that was started after the last one would be lost, or started again under another name.
"""

import dataclasses
import json
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from pipelines import documents, storage
from pipelines.experiments.fixed import before_there_was_a_choice, settled
from pipelines.runs.evaluations import read_record
from pipelines.runs.folder import RunFolder
from pipelines.sweeps.contents import Failure, Seconds, SweepDescription, SweepSummary, Trial
from pipelines.sweeps.plan import Sweep, TrialSpec
from pipelines.sweeps.record import TrialRecord

_RESTORE = "restore it, or start the sweep under another --name"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Known:
    """A trial as recorded in the folder."""

    spec: TrialSpec
    record: TrialRecord
    settled: bool = False
    """Whether MLflow has recorded how it ended."""

    @property
    def is_over(self) -> bool:
        return self.record.status != "running"


class SweepFolder:
    """Reads and writes the folder of a sweep."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep, self.uri = sweep, sweep.uri

    def start_or_continue(self) -> str:
        """Return the sweep's id, which its first start creates. ValueError if it was started with other settings."""
        fixed = self._sweep.fixed()
        description = self.read_description()
        if description is None:
            if storage.exists(storage.join(self.uri, "run.json")):
                raise ValueError(f"name={self._sweep.name}: {self.uri} is a run: give the sweep another --name")
            description = {"id": uuid.uuid4().hex, "fixed": fixed}
            self._write("sweep.json", description)
        choices = json.loads(json.dumps(before_there_was_a_choice()))
        added_since = {name: value for name, value in choices.items() if name in fixed}
        before = added_since | description["fixed"]
        for name in fixed | before:
            if fixed.get(name) != before.get(name):
                raise ValueError(
                    f"{name}={_shown(fixed, name)}, but sweep {self._sweep.name!r} was started with "
                    f"{_shown(before, name)}: continue it with that, or give another --name"
                )
        return description["id"]

    def current(self, spec: TrialSpec) -> tuple[str, TrialSpec]:
        """Return the name of a trial's current run, and the spec it trains now. pbt changes both."""
        if self._sweep.config.scheduler != "pbt":
            return spec.name, spec
        from pipelines.sweeps.lineage import current_run

        run_name, point = current_run(self._sweep, spec.name, spec.point)
        return run_name, self._sweep.spec(point, spec.seed)

    def run(self, spec: TrialSpec) -> RunFolder:
        return RunFolder(storage.join(self.uri, self.current(spec)[0]))

    def read_known(self) -> dict[str, Known]:
        """Return all trials by name, in the order they were started."""
        folder = storage.join(self.uri, "records")
        names = [name for name in storage.list_files(folder) if name.endswith(".json") and storage.is_data(name)]
        found = {name: content for name in names if (content := self._read(f"records/{name}", Trial)) is not None}
        known = {}
        for name, content in sorted(found.items(), key=lambda item: item[1]["number"]):
            record = content["record"]
            if name != f"{record.name}.json":
                raise ValueError(f"{self.uri}/records/{name} is of trial {record.name!r}: {_RESTORE}")
            record = dataclasses.replace(record, values=_tuples(record.values))
            spec = TrialSpec(point=content["point"], values=record.values, seed=record.seed)
            known[record.name] = Known(spec=spec, record=record, settled=content["settled"])
        return known

    def write_known(self, known: Known, number: int) -> None:
        """Write a trial. `number` is its position among the trials."""
        content = {"number": number, "settled": known.settled, "point": dict(known.spec.point)}
        self._write(f"records/{known.record.name}.json", content | {"record": dataclasses.asdict(known.record)})

    def read_seconds(self) -> float:
        content = self._read("seconds.json", Seconds)
        return 0.0 if content is None else content["seconds"]

    def write_seconds(self, seconds: float) -> None:
        self._write("seconds.json", {"seconds": round(seconds, 1)})

    def read_failure(self, spec: TrialSpec) -> str | None:
        """Return why a trial cannot continue; None if it can."""
        content = self._read(f"{spec.name}/failure.json", Failure)
        return None if content is None else content["reason"]

    def read_description(self) -> dict[str, Any] | None:
        """Return the sweep's id and settings; None before its first start."""
        return self._read("sweep.json", SweepDescription)

    def read_summary(self) -> dict[str, Any] | None:
        return self._read("summary.json", SweepSummary)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        self._write("summary.json", summary)

    def _read(self, name: str, kind: Any) -> Any:
        try:
            return documents.read(storage.join(self.uri, name), kind, _RESTORE)
        except FileNotFoundError:
            return None

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        storage.write_bytes(storage.join(self.uri, name), (json.dumps(content, indent=2) + "\n").encode())


def as_started(sweep: Sweep) -> Sweep:
    """Return a sweep whose new trials do as its first ones did, also if it is older than a choice."""
    description = SweepFolder(sweep).read_description()
    if description is None:
        return sweep
    base = settled(sweep.space.base, description["fixed"])
    return dataclasses.replace(sweep, space=dataclasses.replace(sweep.space, base=base))


def with_results(known: Known, run: RunFolder) -> Known:
    """Return the trial with the results that its run has recorded."""
    found = read_record(run)
    steps = run.checkpoint_steps()
    best = found.best_step if found.best_step in steps else max(steps, default=None)
    scores = dict(sorted({**known.record.scores, **found.scores}.items()))
    record = dataclasses.replace(
        known.record,
        scores=scores,
        part_scores=found.part_scores.get(max(found.scores), {}) if found.scores else {},
        checkpoint=None if best is None else run.checkpoint_uri(best),
        train_seconds=run.read_state(max(steps))["train_seconds"] if steps else None,
    )
    return dataclasses.replace(known, record=record)


def records_of(known: Iterable[Known]) -> list[TrialRecord]:
    return [each.record for each in known]


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values read from JSON, with lists turned back into tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _shown(values: Mapping[str, Any], name: str) -> str:
    text = json.dumps(values[name]) if name in values else "nothing"
    return text if len(text) <= 200 else f"{text[:200]}..."
