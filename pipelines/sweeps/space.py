"""Search spaces: axes of an experiment's fields, and the grids and draws that the axes span.

A *point* holds what was taken on each axis: the label of a choice, or a number of a range. Its *values* are the
resulting fields of `ExperimentConfig`, by flat dotted names. Fields that only make sense together, like the depths and
the tokens of grouping stages, are one choice.
"""

import dataclasses
import difflib
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from groupvit.config import flatten, to_dict
from pipelines.experiments.config import ExperimentConfig

Config = TypeVar("Config")
Point = Mapping[str, Any]
Values = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """One of several settings. Each setting gives values to one or more fields."""

    name: str
    options: Mapping[str, Values]
    """Values of fields, by label."""

    @staticmethod
    def of(field: str, *values: Any) -> "Choice":
        """Return a choice between values of one field."""
        return Choice(name=field, options={str(value): {field: value} for value in values})

    def draw(self, generator: np.random.Generator) -> str:
        return str(generator.choice(list(self.options)))

    def values(self, taken: str) -> Values:
        return self.options[taken]

    @property
    def fields(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for values in self.options.values() for name in values))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Range:
    """A number from `low` to `high`, drawn uniformly; with `log`, uniformly on a logarithmic scale."""

    name: str
    """Name of the field."""
    low: float
    high: float
    log: bool = False

    def draw(self, generator: np.random.Generator) -> float:
        """Return a number with three significant digits. More would only look exact."""
        if not self.log:
            return _rounded(generator.uniform(self.low, self.high))
        return _rounded(math.exp(generator.uniform(math.log(self.low), math.log(self.high))))

    def values(self, taken: float) -> Values:
        return {self.name: _rounded(taken)}

    @property
    def fields(self) -> tuple[str, ...]:
        return (self.name,)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Space:
    """The axes of a sweep over one experiment."""

    name: str
    base: ExperimentConfig
    """Experiment with the values of all other fields."""
    axes: tuple[Choice | Range, ...]
    num_seeds: int = 1
    """Number of seeds (0, 1, ...) of each configuration, unless the sweep sets another."""

    def __post_init__(self) -> None:
        if not self.axes:
            raise ValueError(f"space {self.name} is empty: give it at least one axis")
        known = flatten(to_dict(self.base))
        taken: set[str] = set()
        for axis in self.axes:
            if isinstance(axis, Choice) and not axis.options:
                raise ValueError(f"space {self.name} is empty: axis {axis.name} has no option to choose from")
            if isinstance(axis, Range) and not (axis.low < axis.high and (axis.low > 0 or not axis.log)):
                least = "0 < low < high, for it is logarithmic" if axis.log else "low < high"
                raise ValueError(f"space {self.name}: {axis.name} from {axis.low} to {axis.high}: give {least}")
            for field in axis.fields:
                if field not in known:
                    near = difflib.get_close_matches(field, known, n=1, cutoff=0.0)
                    raise ValueError(f"space {self.name}: unknown parameter {field}: did you mean {near[0]}?")
                if field in _OF_THE_SWEEP or field in taken:
                    reason = "two axes set it" if field in taken else "the sweep itself sets it, for all trials"
                    raise ValueError(f"space {self.name}: parameter {field} cannot be searched: {reason}")
            taken |= set(axis.fields)

    @property
    def is_grid(self) -> bool:
        """Whether the space has finitely many points."""
        return all(isinstance(axis, Choice) for axis in self.axes)

    def grid(self) -> Iterator[Point]:
        """Yield every point. ValueError if the space has a range."""
        options = []
        for axis in self.axes:
            if isinstance(axis, Range):
                raise ValueError(
                    f"searcher=grid cannot walk {axis.name} of space {self.name}, a range from {axis.low:g} to "
                    f"{axis.high:g}: give --searcher random or optuna"
                )
            options.append(list(axis.options))
        for labels in itertools.product(*options):
            yield dict(zip([axis.name for axis in self.axes], labels, strict=True))

    def draw(self, generator: np.random.Generator) -> Point:
        """Return a random point."""
        return {axis.name: axis.draw(generator) for axis in self.axes}

    def values(self, point: Point) -> dict[str, Any]:
        """Return the values of the experiment's fields at a point."""
        return {name: value for axis in self.axes for name, value in axis.values(point[axis.name]).items()}


def with_values(config: Config, values: Values) -> Config:
    """Return `config` with other values of some fields, by dotted names. ValueError if they are incompatible."""
    own: dict[str, Any] = {}
    nested: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        head, _, rest = name.partition(".")
        if rest:
            nested.setdefault(head, {})[rest] = value
        else:
            own[head] = value
    parts = {head: with_values(getattr(config, head), inner) for head, inner in nested.items()}
    return dataclasses.replace(config, **own, **parts)  # type: ignore[type-var]


_TOLD_APART = {"name", "training.seed", "data.seed", "training.run_name", "training.runs_folder", "training.num_steps"}
_RESERVED = {f"training.{name}" for name in ("num_workers", "cpus_per_worker", "gpus_per_worker", "device")}
_RESERVED |= {f"evaluation.{name}" for name in ("num_workers", "cpus_per_worker", "gpus_per_worker")}
_OF_THE_SWEEP = frozenset(_TOLD_APART | _RESERVED | {"ingest.max_processes"})
"""Fields that axes cannot set: they identify trials, set their length, or reserve their resources."""


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
