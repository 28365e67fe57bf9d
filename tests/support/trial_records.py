"""Records of trials as a sweep leaves them."""

import itertools
import random
from collections.abc import Sequence
from typing import Any

from pipelines.sweeps.record import TrialRecord

ASSIGNMENT, NOUNS = "model.image.assignment", "loss.num_nouns"


def trial(name: str, values: dict[str, Any], seed: int, scores: Sequence[float], **rest: Any) -> TrialRecord:
    by_step = {100 * 2**rung: score for rung, score in enumerate(scores)}
    return TrialRecord(name=name, values=values, seed=seed, scores=by_step, **{"status": "finished", **rest})


def grid(num_seeds: int = 3) -> list[TrialRecord]:
    """4 configurations; the assignment makes 10 mIoU, the number of nouns nearly nothing, a seed 1."""
    rng = random.Random(0)
    trials = []
    for assignment, num_nouns, seed in itertools.product(("hard", "soft"), (0, 3), range(num_seeds)):
        last = 15 + 10 * (assignment == "soft") + 0.2 * (num_nouns == 3) + rng.gauss(0, 1)
        values = {ASSIGNMENT: assignment, NOUNS: num_nouns, "training.num_steps": 200}
        name = f"{assignment}-{num_nouns}-{seed}"
        trials.append(trial(name, values, seed, [last / 2, last], part_scores={"seen": last + 1, "unseen": last - 1}))
    return trials
