"""What a process needs to load any window of a run, and the slices that it makes. Plain values, because importing torch
would cost each of Ray's coordinating processes seconds and most of a gigabyte.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipelines.dataset.format import DatasetInfo
from pipelines.experiments.amendments import weights_by_step
from pipelines.experiments.caption_mix import parse_caption_mix
from pipelines.ingest.sampling import SampleOrder, Source
from pipelines.ingest.uncurated import open_source

if TYPE_CHECKING:
    from pipelines.experiments.config import ExperimentConfig

Slice = dict[str, npt.NDArray[Any]]
"""A slice of n samples, with K prompts each:

image        uint8 [n,3,H,W]
token_ids    int32 [n,1+K,T]   the caption, then the prompts
prompt_keys  int64 [n,K]       equal for prompts with the same noun
erase_box    int16 [n,4]       top, left, height, width of what is erased after normalisation; zeros: nothing
noise_seed   int64 [n]
sample_id    str [n]
position     int64 [n]         in the run's sequence
epoch        int32 [n]         of its source
source       int8 [n]          index in `data.sources`
substituted  bool [n]          the image was corrupted: image, caption and nouns are those of another sample, while
                               sample_id is that of the original one

With `ingest.augment_on` = device, for `groupvit.device_augment`, where R may be 0:

flip         bool [n]
operations   int8 [n,R]        in the order of their rounds: indices in `groupvit.augment.OPERATIONS`, -1 for none
arguments    float32 [n,R]     of the operations; 0 where they take none"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class IngestPlan:
    """All that a process needs to load any window."""

    order: SampleOrder
    uris: tuple[str, ...]
    """URIs of the data sets, in the order of `order.sources`."""
    files: tuple[tuple[str, ...], ...]
    first_groups: tuple[npt.NDArray[np.int64], ...]
    is_raw: tuple[bool, ...]
    """Whether each of them consists of raw shards."""
    slice_size: int
    image_size: int
    context_length: int
    num_prompts: int
    caption_mix: dict[str, float] | None
    """Weights of the captions by origin. None: all captions of a sample take turns."""
    options: dict[str, Any]
    """The fields of `IngestConfig`."""


def sample_order(config: "ExperimentConfig", datasets: Sequence[DatasetInfo]) -> SampleOrder:
    """Returns the order of samples of a run of `config` on these data sets, one for each of `data.sources`."""
    return SampleOrder.of(
        [Source.from_row_groups(info.rows) for info in datasets],
        weights=config.data.weights,
        later_weights=[
            (step * config.training.global_batch_size, shares) for step, shares in weights_by_step(config.amendments)
        ],
        seed=config.data.seed,
        window_size=config.ingest.window_size,
    )


def plan_ingest(config: "ExperimentConfig") -> IngestPlan:
    """Opens the data sets of `config`. Raises ValueError if one is invalid."""
    datasets = [open_source(uri) for uri in config.data.sources]
    return IngestPlan(
        order=sample_order(config, datasets),
        uris=tuple(info.uri for info in datasets),
        files=tuple(info.files for info in datasets),
        first_groups=tuple(info.first_groups for info in datasets),
        is_raw=tuple(info.is_raw for info in datasets),
        slice_size=config.slice_size,
        image_size=config.model.image.image_size,
        context_length=config.model.text.context_length,
        num_prompts=config.loss.num_prompts,
        caption_mix=parse_caption_mix(config.data.caption_mix),
        options=dataclasses.asdict(config.ingest),
    )
