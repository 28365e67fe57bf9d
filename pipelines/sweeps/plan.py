"""A sweep as a plan: its trials, and the complete experiment of each. Nothing runs here. Anything that cannot run is
refused here."""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from groupvit.config import flatten, to_dict
from pipelines import storage
from pipelines.experiments.config import ExperimentConfig, validate
from pipelines.experiments.fixed import fixes_the_result
from pipelines.sweeps.config import DEMO_STEPS, SweepConfig
from pipelines.sweeps.space import Choice, Point, Space, with_values
from pipelines.training.job import with_absolute_paths

METRIC, TIME = "miou", "step"
"""Keys under which a trial reports a rung: mIoU in percent, and the training step."""

CHANGEABLE = (
    "optimizer.learning_rate",
    "optimizer.min_learning_rate",
    "optimizer.clip_grad_norm",
    "loss.multi_label_weight",
    "loss.shared_positives",
    "ingest.crop_scale",
    "ingest.color_jitter",
    "ingest.prompt_templates",
    "ingest.prompt_padding",
)
"""Fields that may change during training, because neither a weight nor the optimiser's state depends on them."""

_MOST_DRAWS = 1000
"""Maximum number of draws in a row that are invalid or known, before the space counts as exhausted."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrialSpec:
    """Defines a trial: equal specs are the same trial."""

    point: Point
    """Label or number taken on each axis of the space."""
    values: Mapping[str, Any]
    """The resulting values, by field of `ExperimentConfig`."""
    seed: int

    @property
    def name(self) -> str:
        """Name that is the same at every start, so that a trial finds its run again."""
        return f"{self.configuration}-s{self.seed}"

    @staticmethod
    def seed_of(name: str) -> int:
        """Return the seed of the trial with that name."""
        return int(name.rpartition("-s")[2])

    @property
    def configuration(self) -> str:
        """Id that all seeds of the same values share."""
        return hashlib.sha256(json.dumps(self.values, sort_keys=True).encode()).hexdigest()[:8]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """A complete sweep, created and checked by `plan_sweep`."""

    config: SweepConfig
    space: Space
    """Space with a complete base: paths are absolute, steps and rungs are set."""
    tracking_uri: str | None

    @property
    def name(self) -> str:
        return self.config.name or f"sweep-{self.space.name}"

    @property
    def uri(self) -> str:
        """URI of the sweep's folder, which contains the run folder of each trial."""
        return storage.join(self.space.base.training.runs_folder, self.name)

    @property
    def searcher(self) -> str:
        return self.config.searcher or ("grid" if self.space.is_grid else "random")

    @property
    def seeds(self) -> range:
        return range(self.config.num_seeds or self.space.num_seeds)

    @property
    def num_steps(self) -> int:
        return self.space.base.training.num_steps

    @property
    def num_trials(self) -> int | None:
        """Number of trials; None if only the hours limit it."""
        if self.searcher != "grid":
            return self.config.budget_trials
        whole = len(list(self.space.grid())) * len(self.seeds)
        return min(whole, self.config.budget_trials or whole)

    @property
    def resources_per_trial(self) -> dict[str, float]:
        """Most resources a trial takes, on CPUs: training workers, data tasks, evaluation."""
        training, evaluation = self.space.base.training, self.space.base.evaluation
        cpus = training.max_workers * training.cpus_per_worker + (self.space.base.ingest.max_processes or 1)
        return {"CPU": float(cpus + evaluation.num_workers * evaluation.cpus_per_worker)}

    def experiment(self, spec: TrialSpec, run_name: str | None = None) -> ExperimentConfig:
        """Return the experiment of a trial's run, which is named after the trial by default.

        ValueError if the trial's values are incompatible.
        """
        config = with_values(self.space.base, spec.values)
        config = dataclasses.replace(
            config,
            data=dataclasses.replace(config.data, seed=spec.seed),
            training=dataclasses.replace(
                config.training, seed=spec.seed, runs_folder=self.uri, run_name=run_name or spec.name
            ),
        )
        # The sweep registers its best model when all trials are done.
        evaluation = dataclasses.replace(config.evaluation, registered_model=None)
        config = dataclasses.replace(config, evaluation=evaluation)
        validate(config)
        return config

    def spec(self, point: Point, seed: int) -> TrialSpec:
        return TrialSpec(point=point, values=self.space.values(point), seed=seed)

    def grid(self) -> list[TrialSpec]:
        """Return all trials of a grid: one seed of every configuration before the next seed, so that early results are
        comparable."""
        specs = [self.spec(point, seed) for seed, point in itertools.product(self.seeds, self.space.grid())]
        return specs[: self.num_trials]

    def draws(self) -> Iterator[TrialSpec]:
        """Yield valid random configurations, each with all seeds; the same at every start.

        Ends when no new one is found any more. ValueError if the space has no valid configuration.
        """
        known: set[str] = set()
        fruitless = 0
        for index in itertools.count():
            spec = self.spec(self.space.draw(np.random.default_rng([self.config.seed, index])), 0)
            if spec.configuration in known or self.refusal(spec) is not None:
                fruitless += 1
                if fruitless < _MOST_DRAWS:
                    continue
                if known:
                    return
                raise ValueError(f"space {self.space.name} has no valid configuration: {self.refusal(spec)}")
            fruitless = 0
            known.add(spec.configuration)
            yield from (dataclasses.replace(spec, seed=seed) for seed in self.seeds)

    def refusal(self, spec: TrialSpec) -> str | None:
        """Return why the values of a trial are incompatible; None if they are valid."""
        try:
            self.experiment(spec)
        except ValueError as error:
            return str(error)
        return None

    def fixed(self) -> dict[str, Any]:
        """Return the settings that cannot change when the sweep resumes, JSON-safe."""
        evaluation = flatten({"evaluation": to_dict(self.space.base.evaluation)})
        free = ("num_workers", "cpus_per_worker", "gpus_per_worker", "registered_model", "num_pictures")
        axes = {
            f"space.{axis.name}": {label: dict(values) for label, values in axis.options.items()}
            if isinstance(axis, Choice)
            else [axis.low, axis.high, axis.log]
            for axis in self.space.axes
        }
        own = {"space": self.space.name, "base": self.space.base.name, "searcher": self.searcher}
        own |= {name: getattr(self.config, name) for name in ("scheduler", "reduction_factor", "seed")}
        of_base = fixes_the_result(self.space.base)
        varied = {field for axis in self.space.axes for field in axis.fields} | {"training.seed", "data.seed"}
        rest = {name: value for name, value in of_base.items() if name not in varied}
        scoring = {name: value for name, value in evaluation.items() if name.removeprefix("evaluation.") not in free}
        sources = {"data.sources": list(self.space.base.data.sources)}
        seeds = {"num_seeds": len(self.seeds)}
        return json.loads(json.dumps(own | seeds | axes | sources | scoring | rest))


def prepared(base: ExperimentConfig, config: SweepConfig, own_steps: int) -> ExperimentConfig:
    """Return `base` as trials use it, with absolute paths, steps and rungs. `own_steps`: the experiment's own steps."""
    base = with_absolute_paths(base)
    training, optimizer, evaluation = base.training, base.optimizer, base.evaluation
    num_steps = config.num_steps
    if num_steps is None and base.name == "demo" and training.num_steps == own_steps:
        num_steps = DEMO_STEPS
    if num_steps is not None:
        warmup = round(optimizer.warmup_steps * num_steps / training.num_steps)
        optimizer = dataclasses.replace(optimizer, warmup_steps=warmup)
        training = dataclasses.replace(training, num_steps=num_steps)
    rungs = config.rung_every_n_steps or evaluation.every_n_steps or -(-training.num_steps // 4)
    if training.run_name is not None:
        raise ValueError(f"training.run_name={training.run_name}: a sweep names the runs of its trials: give --name")
    if base.ingest.slice_size == "auto":
        raise ValueError(
            "ingest.slice_size=auto: trials on different GPUs would differ in it, and are compared: give a number"
        )
    if not evaluation.root:
        raise ValueError(
            f"evaluation.root is missing: trials are scored on masks: give --evaluation.root, the folder of "
            f"{evaluation.benchmark}"
        )
    return dataclasses.replace(
        base,
        training=training,
        optimizer=optimizer,
        evaluation=dataclasses.replace(evaluation, every_n_steps=rungs),
        # Otherwise the data tasks of each trial would take all CPUs that the others need.
        ingest=dataclasses.replace(base.ingest, max_processes=base.ingest.max_processes or 1),
    )


def plan_sweep(config: SweepConfig, space: Space) -> Sweep:
    """Return the sweep of a space whose base is prepared. ValueError if it cannot be searched like this."""
    sweep = Sweep(config=config, space=space, tracking_uri=space.base.tracking.uri)
    if sweep.searcher != "grid" and config.budget is None:
        raise ValueError(f"budget is missing: searcher={sweep.searcher} would never end: give --budget 20, or 3h")
    if config.scheduler == "pbt":
        if not any(field in CHANGEABLE for axis in space.axes for field in axis.fields):
            raise ValueError(
                f"scheduler=pbt finds nothing in space {space.name} that may change while a model trains: give "
                f"asha, or a space with one of {', '.join(CHANGEABLE[:4])}"
            )
        if (sweep.num_trials or 0) < 2:
            raise ValueError(
                f"budget={config.budget} is not a population size for scheduler=pbt: give trials, 4 or more"
            )
    if sweep.searcher == "grid":
        for spec in sweep.grid():
            sweep.experiment(spec)
    else:
        next(sweep.draws())
    return sweep
