"""What the JSON files of a run hold. A later version may add keys; they are kept."""

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field, with_config
from typing_extensions import TypedDict  # pydantic asks for it before Python 3.12

from groupvit.config import PrecisionChoice
from pipelines.documents import KEEP_OTHERS, Count, Finite

Fixed = with_config(KEEP_OTHERS)(
    TypedDict(
        "Fixed",
        {
            "ingest.slice_size": Annotated[int, Field(ge=1)] | Literal["auto"],
            "ingest.resize": NotRequired[Literal["auto", "torch", "pillow"]],
            "training.precision": NotRequired[PrecisionChoice],
            "training.reduce_precision": NotRequired[Literal["exact", "float32", "bfloat16"]],
        },
    )
)
"""Flat names and values of the fields that a run cannot change. The others are only compared."""


@with_config(KEEP_OTHERS)
class RecordedAmendment(TypedDict):
    """One change from a step on (`experiments.amendments`), with who asked for it, when, and after which step."""

    text: Annotated[str, Field(max_length=10_000)]
    by: Annotated[str, Field(max_length=1000)]
    at: Annotated[str, Field(max_length=100)]
    from_step: Count
    """Number of steps that are done when it begins."""
    after_step: Count


@with_config(KEEP_OTHERS)
class RunDescription(TypedDict):
    """run.json"""

    job_id: Annotated[str, Field(pattern=r"\A[^'\\\x00-\x1f]{1,300}\z")]  # a part of a query to MLflow
    fixed: Fixed
    config: dict[str, Any]
    precision: NotRequired[PrecisionChoice]
    amendments: NotRequired[Annotated[list[RecordedAmendment], Field(max_length=40)]]


@with_config(KEEP_OTHERS)
class Guard(TypedDict):
    """Which steps were skipped (`groupvit.step_guard`)."""

    grad_norms: Annotated[list[Finite], Field(max_length=1000)]
    skipped_steps: Count
    skipped_in_a_row: Count


@with_config(KEEP_OTHERS)
class SkippedStep(TypedDict):
    """skipped/step-00000017.json of a run. None: not finite."""

    loss: float | None
    grad_norm: float | None
    median: float | None


@with_config(KEEP_OTHERS)
class TrainingState(TypedDict):
    """state.json of a checkpoint in a run. `groupvit.checkpoint` checks what belongs to the model."""

    step: Count
    loss: float | None
    """None: no step yet had one."""
    guard: NotRequired[Guard]
    samples_seen: list[Count]
    substituted_images: Count
    train_seconds: Annotated[Finite, Field(ge=0)]
    config: dict[str, Any]
    unsent_metrics: NotRequired[list[dict[str, Any]]]
    """The tracker checks each."""
