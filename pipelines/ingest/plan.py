"""What a process has to know to load any window of a run, and what it makes of one. Plain values: importing torch would
cost each of Ray's processes that only coordinate seconds and most of a gigabyte.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipelines.ingest.sampling import SampleOrder, Source
from pipelines.ingest.uncurated import open_source

if TYPE_CHECKING:
    from pipelines.experiments.config import ExperimentConfig

Slice = dict[str, npt.NDArray[Any]]
"""A slice of n samples, with K prompts each:

image        uint8 [n,3,H,W]
token_ids    int32 [n,1+K,T]   the caption, then the prompts
prompt_keys   int64 [n,K]       equal where prompts name the same noun
erase_box    int16 [n,4]       for `groupvit.transforms.finish`, as is
noise_seed   int64 [n]
sample_id    str [n]
position     int64 [n]         in the run's sequence
epoch        int32 [n]         of its source
source       int8 [n]          index in `data.sources`
substituted  bool [n]          the image was corrupt: image, caption and nouns are those of another sample, while
                               sample_id still names the one whose turn it was
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class IngestPlan:
    """All a process has to know to load any window."""

    order: SampleOrder
    uris: tuple[str, ...]
    """Of the data sets, in the order of `order.sources`."""
    files: tuple[tuple[str, ...], ...]
    first_groups: tuple[npt.NDArray[np.int64], ...]
    is_raw: tuple[bool, ...]
    """Which of them are raw shards."""
    slice_size: int
    image_size: int
    context_length: int
    num_prompts: int
    options: dict[str, Any]
    """The fields of `IngestConfig`."""


def plan_ingest(config: "ExperimentConfig") -> IngestPlan:
    """Open the data sets of `config`; ValueError for what is wrong with them."""
    datasets = [open_source(uri) for uri in config.data.sources]
    return IngestPlan(
        order=SampleOrder.of(
            [Source.from_row_groups(info.rows) for info in datasets],
            weights=config.data.weights,
            seed=config.data.seed,
            window_size=config.ingest.window_size,
        ),
        uris=tuple(info.uri for info in datasets),
        files=tuple(info.files for info in datasets),
        first_groups=tuple(info.first_groups for info in datasets),
        is_raw=tuple(info.is_raw for info in datasets),
        slice_size=config.ingest.slice_size,
        image_size=config.model.image.image_size,
        context_length=config.model.text.context_length,
        num_prompts=config.loss.num_prompts,
        options=dataclasses.asdict(config.ingest),
    )
