"""Amendments: what a run changes from a step on, by record.

    from 120000: data.weights=0.7,0.3         from the first window after step 120,000 on
    from 90000: optimizer.learning_rate=1e-4  the peak of the schedule, from step 90,001 on
    skip 118400:118500                        steps 118,401 to 118,500 leave the model as it is

A number in them is a number of steps that are done, as in the progress lines.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from groupvit.config import OptimizerConfig

WEIGHTS, LEARNING_RATE = "data.weights", "optimizer.learning_rate"
_STEP = r"(\d{1,18}(?:_\d{1,18})*)"
_FROM = re.compile(rf"from\s+{_STEP}\s*:\s*([\w.\-]+)\s*=\s*(\S.*)")
_SKIP = re.compile(rf"skip\s+{_STEP}\s*:\s*{_STEP}")
_EXAMPLES = f'"from 120000: {LEARNING_RATE}=1e-4", "from 120000: {WEIGHTS}=0.7,0.3" or "skip 118400:118500"'
MAX_AMENDMENTS = 40
"""Largest number of amendments of a run: MLflow keeps their texts in one tag."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Amendment:
    """One amendment of a run."""

    first: int
    """Number of steps that are done when it begins."""
    last: int | None = None
    """Number of steps that are done when it ends, of steps to skip."""
    field: str | None = None
    """Field of the config. None: the steps are skipped."""
    value: tuple[float, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Amendment":
        """Raises ValueError, in one line, if it is not one that a run can follow."""
        if match := _SKIP.fullmatch(text.strip()):
            first, last = (int(number) for number in match.groups())
            if first >= last:
                raise ValueError(f"--amend {text!r} skips nothing: give e.g. skip {first}:{first + 100}")
            return cls(first=first, last=last)
        match = _FROM.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"--amend {text!r} is not an amendment: give e.g. {_EXAMPLES}")
        step, field, given = match.groups()
        field = field.replace("-", "_")
        if field not in (WEIGHTS, LEARNING_RATE):
            raise ValueError(
                f"--amend {text!r}: {field} is fixed for the whole run; only {WEIGHTS} and {LEARNING_RATE} can change, "
                "and steps can be skipped: give another --training.run-name"
            )
        try:
            value = tuple(float(number) for number in given.split(","))
        except ValueError:
            raise ValueError(f"--amend {text!r}: {given} are not numbers: give e.g. {_EXAMPLES}") from None
        if not all(math.isfinite(number) and number > 0 for number in value):
            raise ValueError(f"--amend {text!r}: every number must be above 0")
        if field == LEARNING_RATE and len(value) != 1:
            raise ValueError(f"--amend {text!r}: give one number")
        return cls(first=int(step), field=field, value=value)

    def __str__(self) -> str:
        """The text that it is recorded by: equal for equal amendments."""
        if self.field is None:
            return f"skip {self.first}:{self.last}"
        return f"from {self.first}: {self.field}={','.join(_shortest(number) for number in self.value)}"


def check_amendments(texts: Sequence[str], *, num_steps: int, num_sources: int) -> None:
    """Raises ValueError for the first amendment that a run of so many steps and data sets cannot follow."""
    if len(texts) > MAX_AMENDMENTS:
        raise ValueError(f"--amend is given {len(texts):,} times: give at most {MAX_AMENDMENTS:,}")
    begun: dict[tuple[int, str], str] = {}
    for text in texts:
        amendment = Amendment.parse(text)
        if amendment.first >= num_steps or (amendment.last or 0) > num_steps:
            raise ValueError(f"--amend {text!r} is beyond training.num_steps={num_steps}")
        if amendment.field == WEIGHTS and len(amendment.value) != num_sources:
            raise ValueError(
                f"--amend {text!r} has {len(amendment.value)} weights for {num_sources} data.sources: give one each"
            )
        if amendment.field is not None:
            other = begun.setdefault((amendment.first, amendment.field), str(amendment))
            if other != str(amendment):
                raise ValueError(f"--amend {text!r} contradicts {other!r}: give one of them")


def as_text(recorded: Sequence[Mapping[str, Any]]) -> str:
    """Returns recorded amendments for people, one a line: what, by whom, when, after which step."""
    return "\n".join(f"{each['text']} (by {each['by']}, {each['at']}, after {each['after_step']})" for each in recorded)


def texts_of(description: Mapping[str, Any]) -> list[str]:
    """Returns the amendments in run.json, in the order in which they were asked for."""
    return [each["text"] for each in description.get("amendments", [])]


def texts_in(text: str) -> list[str]:
    """Returns the amendments in what `as_text` made."""
    return [line.partition(" (by ")[0] for line in text.splitlines()]


def skipped_ranges(texts: Sequence[str]) -> list[range]:
    """Returns the steps, from 0, that the amendments skip. Ranges may overlap."""
    return [range(each.first, each.last) for each in _parsed(texts) if each.last is not None]


def is_skipped(texts: Sequence[str], step: int) -> bool:
    """Whether one of the amendments skips step `step`, from 0."""
    return any(step in steps for steps in skipped_ranges(texts))


def optimizer_at(config: OptimizerConfig, texts: Sequence[str], step: int) -> OptimizerConfig:
    """Returns the amended config at step `step`, from 0."""
    rates = {each.first: each.value[0] for each in _parsed(texts) if each.field == LEARNING_RATE}
    begun = [first for first in rates if first <= step]
    return dataclasses.replace(config, learning_rate=rates[max(begun)]) if begun else config


def weights_by_step(texts: Sequence[str]) -> list[tuple[int, tuple[float, ...]]]:
    """Returns amended weights of the data sets, each with the step from which it holds, ascending by step."""
    return sorted((each.first, each.value) for each in _parsed(texts) if each.field == WEIGHTS)


def _shortest(number: float) -> str:
    return repr(int(number)) if number.is_integer() and number < 2**53 else repr(number)


def _parsed(texts: Sequence[str]) -> tuple[Amendment, ...]:
    return _parsed_once(tuple(texts))


@functools.lru_cache(maxsize=16)
def _parsed_once(texts: tuple[str, ...]) -> tuple[Amendment, ...]:
    """The training loop asks at every step."""
    return tuple(Amendment.parse(text) for text in texts)
