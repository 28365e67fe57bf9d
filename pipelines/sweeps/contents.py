"""What the JSON files of a sweep hold. A later version may add keys; they are kept."""

from typing import Annotated, Any

from pydantic import Field, with_config
from typing_extensions import TypedDict  # pydantic asks for it before Python 3.12

from pipelines.documents import KEEP_OTHERS, Count, Finite
from pipelines.sweeps.record import TrialRecord

RunName = Annotated[str, Field(pattern=r"\A[\w=,+-][\w=,.+-]*\z", max_length=255)]
"""Name of a run's folder directly in the sweep's folder."""


@with_config(KEEP_OTHERS)
class SweepDescription(TypedDict):
    """sweep.json"""

    id: Annotated[str, Field(pattern=r"\A[\w-]{1,64}\z")]
    fixed: dict[str, Any]


@with_config(KEEP_OTHERS)
class SweepSummary(TypedDict):
    """summary.json"""

    table: str


@with_config(KEEP_OTHERS)
class Trial(TypedDict):
    """records/TRIAL.json"""

    number: Count
    settled: bool
    point: dict[str, Any]
    record: TrialRecord


@with_config(KEEP_OTHERS)
class Seconds(TypedDict):
    """seconds.json"""

    seconds: Annotated[Finite, Field(ge=0)]


@with_config(KEEP_OTHERS)
class Failure(TypedDict):
    """failure.json of a trial"""

    reason: str


class Pointer(TypedDict):
    """From which run and step a trial continues with pbt."""

    run: RunName
    step: Count


Ancestor = with_config(KEEP_OTHERS)(
    TypedDict("Ancestor", {"run": RunName, "from": RunName, "step": Count, "point": dict[str, Any]})
)
"""An entry of lineage/TRIAL.json."""
