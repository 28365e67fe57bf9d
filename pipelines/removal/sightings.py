"""Which runs have seen samples of a data set, and at which steps. The order of samples tells, so nothing was recorded.

Only steps up to a run's newest checkpoint are counted: no weights of later ones exist. For a run that only MLflow
knows, it is the last step that was recorded there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pipelines.dataset.format import DatasetInfo
from pipelines.experiments.amendments import skipped_ranges
from pipelines.ingest.plan import sample_order
from pipelines.ingest.uncurated import open_source
from pipelines.removal.hits import Hits
from pipelines.removal.run_records import RunRecord, UnknownOrderError

_MOST_VISITS = 2**26
"""Largest number of visits of a run, about 7 GB. A run would have to see a million samples 67 times."""

_LARGEST_WINDOW, _LAST_POSITION = 2**24, 2**60


@dataclass(frozen=True, kw_only=True, eq=False)
class Sightings:
    """What a run has seen of some samples of a data set. The arrays have an entry for each visit, in order of steps."""

    record: RunRecord
    index: npt.NDArray[np.int64] = field(repr=False)
    """Which of the samples."""
    epoch: npt.NDArray[np.int64] = field(repr=False)
    """Epoch of the data set, from 0."""
    step: npt.NDArray[np.int64] = field(repr=False)
    """Step, from 1, as in the progress lines and in MLflow."""
    skipped: npt.NDArray[np.bool_] = field(repr=False)
    """Whether the step was skipped: it consumed the sample, but did not change the weights."""

    @property
    def first_learned_step(self) -> int | None:
        """First step that changed the weights by one of the samples. None: there is none."""
        learned = self.step[~self.skipped]
        return int(learned[0]) if len(learned) else None

    @property
    def checkpoints_without(self) -> list[int] | None:
        """Steps of the checkpoints whose weights have learned from none of the samples. None: unknown."""
        first, steps = self.first_learned_step, self.record.checkpoint_steps
        return None if steps is None else [step for step in steps if first is None or step < first]


def sightings_of(record: RunRecord, info: DatasetInfo, hits: Hits) -> Sightings:
    """Computes when a run, which trains on `info`, has seen `hits`. Raises ValueError, in one line, if that is not
    known."""
    config, digests, newest = record.config, record.digests, record.newest_step
    if len(digests) != len(config.data.sources):
        raise UnknownOrderError(f"{record.run}: has {len(digests)} digests for {len(config.data.sources)} data sets")
    datasets = [
        info if digest == info.digest else _other_source(uri, digest)
        for uri, digest in zip(config.data.sources, digests, strict=True)
    ]
    if newest > config.training.num_steps:
        raise UnknownOrderError(f"{record.run}: has reached step {newest}, after its last one")
    batch, window_size = config.training.global_batch_size, config.ingest.window_size
    if not (batch >= 1 and 1 <= window_size <= _LARGEST_WINDOW and newest * batch <= _LAST_POSITION):
        raise UnknownOrderError(
            f"{record.run}: no order of samples has batches of {batch} and windows of {window_size} up to step {newest}"
        )
    order = sample_order(config, datasets)
    counted = order.counts_before(newest * batch)
    if record.samples_seen not in (None, tuple(counted)):
        raise UnknownOrderError(
            f"{record.run}: its newest checkpoint counts {list(record.samples_seen or ())} samples seen of its data "
            f"sets, the order of samples {counted}: the run followed another order"
        )
    sources = [source for source, digest in enumerate(digests) if digest == info.digest]
    for source in sources:
        num_visits = (counted[source] // info.num_samples + 2) * len(hits.samples)
        if num_visits > _MOST_VISITS:
            raise UnknownOrderError(f"{record.run}: has seen the samples {num_visits:,} times, too many: give fewer")
    visits = [order.find(source, hits.row_groups, hits.rows, newest * batch) for source in sources]
    position = np.concatenate([of_source.position for of_source in visits])
    in_order = np.argsort(position)
    step = position[in_order] // batch
    was_skipped = np.isin(step, record.skipped)
    for steps in skipped_ranges(config.amendments):
        was_skipped |= (step >= steps.start) & (step < steps.stop)
    return Sightings(
        record=record,
        index=np.concatenate([of_source.index for of_source in visits])[in_order],
        epoch=np.concatenate([of_source.epoch for of_source in visits])[in_order],
        step=step + 1,
        skipped=was_skipped,
    )


def _other_source(uri: str, digest: str) -> DatasetInfo:
    """Opens another data set of a mixture, whose size is part of the order."""
    info = open_source(uri)
    if info.digest != digest:
        raise UnknownOrderError(f"{uri}: changed since the run began, and is part of its order of samples")
    return info


def made_from(info: DatasetInfo, digests: Sequence[str]) -> str | None:
    """Returns the URI of the one of these data sets from which `info` was made by removals. None: of none."""
    for before in info.metadata.get("made_by_forget", []):
        if before.get("digest") in digests:
            return str(before.get("uri"))
    return None
