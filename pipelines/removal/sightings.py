"""Which runs have seen samples of a data set, and at which steps. The order of samples tells, so nothing was recorded.

Only steps up to a run's newest checkpoint are counted: no weights of later ones exist.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from groupvit.config import from_dict
from pipelines import storage
from pipelines.dataset.format import DatasetInfo
from pipelines.experiments.config import ExperimentConfig
from pipelines.ingest.plan import sample_order
from pipelines.ingest.uncurated import open_source
from pipelines.removal.hits import Hits
from pipelines.runs.folder import RunFolder
from pipelines.runs.skipped import skipped_steps

_MOST_VISITS = 2**26
"""Largest number of visits of a run, about 7 GB. A run would have to see a million samples 67 times."""


class UnknownOrderError(ValueError):
    """What a run has seen cannot be computed. One line."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sightings:
    """What a run has seen of some samples of a data set. The arrays have an entry for each visit, in order of steps."""

    run: str
    """URI of the run's folder."""
    newest_step: int
    """Step of the newest checkpoint; 0 without one."""
    checkpoint_steps: tuple[int, ...]
    num_substituted: int
    """Number of corrupt images in place of which the run was shown another one of the same window."""
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
    def checkpoints_without(self) -> list[int]:
        """Steps of the checkpoints whose weights have learned from none of the samples."""
        first = self.first_learned_step
        return [step for step in self.checkpoint_steps if first is None or step < first]


def find_runs(uri: str) -> list[RunFolder]:
    """Returns the run in a folder, or all that lie in it and, for sweeps, one level deeper.

    Raises ValueError if there is none.
    """
    found = list(_runs_in(storage.absolute(uri), levels=2))
    if not found:
        storage.check_bucket(uri)
        raise ValueError(f"runs={uri}: holds no run, because no run.json; give folders of runs")
    return found


def _runs_in(uri: str, levels: int) -> Iterator[RunFolder]:
    if "run.json" in storage.list_files(uri):
        yield RunFolder(uri)
    elif levels:
        for name in storage.list_folders(uri):
            yield from _runs_in(storage.join(uri, name), levels - 1)


def data_digests(run: RunFolder) -> list[str]:
    """Returns the digests of the data sets that a run trains on."""
    description = run.read_description()
    assert description is not None, "find_runs returns folders with a run.json"
    digests = description["fixed"].get("data.digests")
    if not isinstance(digests, list) or not all(isinstance(digest, str) for digest in digests):
        raise UnknownOrderError(f"{run.uri}/run.json: does not say on which data sets the run trains")
    return digests


def sightings_of(run: RunFolder, info: DatasetInfo, hits: Hits) -> Sightings:
    """Computes when a run, which trains on `info`, has seen `hits`. Raises ValueError, in one line, if that is not
    known."""
    digests = data_digests(run)
    config = _config(run)
    if len(digests) != len(config.data.sources):
        raise UnknownOrderError(
            f"{run.uri}/run.json: has {len(digests)} digests for {len(config.data.sources)} data sets"
        )
    datasets = [
        info if digest == info.digest else _other_source(uri, digest)
        for uri, digest in zip(config.data.sources, digests, strict=True)
    ]
    order, batch = sample_order(config, datasets), config.training.global_batch_size
    steps = run.checkpoint_steps()
    newest = steps[-1] if steps else 0
    if newest > config.training.num_steps:
        raise UnknownOrderError(f"{run.uri}: has a checkpoint of step {newest}, after its last one")
    state = run.read_state(newest) if newest else {}
    counted = order.counts_before(newest * batch)
    if newest and state["samples_seen"] != counted:
        raise UnknownOrderError(
            f"{run.uri}: its newest checkpoint counts {state['samples_seen']} samples seen of its data sets, the order "
            f"of samples {counted}: the run followed another order"
        )
    sources = [source for source, digest in enumerate(digests) if digest == info.digest]
    for source in sources:
        num_visits = (counted[source] // info.num_samples + 2) * len(hits.samples)
        if num_visits > _MOST_VISITS:
            raise UnknownOrderError(
                f"{run.uri}: has seen the samples {num_visits:,} times, too many to list: give fewer"
            )
    visits = [order.find(source, hits.row_groups, hits.rows, newest * batch) for source in sources]
    position = np.concatenate([of_source.position for of_source in visits])
    in_order = np.argsort(position)
    step = position[in_order] // batch
    return Sightings(
        run=run.uri,
        newest_step=newest,
        checkpoint_steps=tuple(steps),
        num_substituted=state.get("substituted_images", 0),
        index=np.concatenate([of_source.index for of_source in visits])[in_order],
        epoch=np.concatenate([of_source.epoch for of_source in visits])[in_order],
        step=step + 1,
        skipped=np.isin(step, skipped_steps(run)),
    )


def _config(run: RunFolder) -> ExperimentConfig:
    description = run.read_description()
    assert description is not None, "find_runs returns folders with a run.json"
    try:
        return from_dict(ExperimentConfig, description["config"])
    except (TypeError, ValueError) as error:
        raise UnknownOrderError(f"{run.uri}/run.json: its config cannot be read ({error})") from error


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
