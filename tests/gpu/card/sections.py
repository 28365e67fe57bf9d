"""The sections of each part, in order, with their time limits."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from tests.gpu.card.compiling import first_start, second_start
from tests.gpu.card.context import Context
from tests.gpu.card.evaluation import evaluation
from tests.gpu.card.hugging_face import hugging_face
from tests.gpu.card.learning import learning
from tests.gpu.card.numbers import same_numbers
from tests.gpu.card.ray_worker import ray_worker
from tests.gpu.card.speed import speed
from tests.gpu.card.where import where_am_i

PART_SECONDS = 320.0
"""Limit of a part: ten seconds less than a part may take, for the imports."""


@dataclasses.dataclass(frozen=True)
class Section:
    """One subject. `limit_seconds`: after which it is interrupted, on a card."""

    name: str
    run: Callable[[Context], None]
    limit_seconds: float


PARTS: Mapping[int, Sequence[Section]] = {
    1: (
        Section("where am I", where_am_i, 25),
        Section("same numbers", same_numbers, 60),
        Section("compiled start", first_start, 60),
        Section("Hugging Face", hugging_face, 90),
        Section("speed", speed, 220),
    ),
    2: (
        Section("compiled start", second_start, 60),
        Section("evaluation", evaluation, 45),
        Section("it learns", learning, 90),
        Section("Ray", ray_worker, 200),
    ),
}
