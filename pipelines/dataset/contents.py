"""What the JSON files of a data set and of raw shards hold. A later version may add keys; they are kept."""

from typing import Annotated, Any, NotRequired

from pydantic import Field, with_config
from typing_extensions import TypedDict  # pydantic asks for it before Python 3.12

from pipelines.documents import KEEP_OTHERS, Count

_MOST_ROWS = 2**24  # of a shard


@with_config(KEEP_OTHERS)
class DatasetVersion(TypedDict):
    """The part of dataset.json that no version changes."""

    schema_version: Annotated[int, Field(ge=1)]


@with_config(KEEP_OTHERS)
class DatasetDescription(DatasetVersion):
    """dataset.json"""

    num_samples: Count
    digest: str
    drops: NotRequired[dict[str, Count | dict[str, Count]]]
    """By reason, or by source and reason."""
    recaptions: NotRequired[dict[Annotated[str, Field(min_length=1)], dict[str, Any]]]
    """What became of the recaptions, by their origin."""
    curation: NotRequired[dict[str, Any]]
    """Summary of `groupvit curate`."""
    made_by_forget: NotRequired[list[dict[str, Any]]]
    """What each `groupvit forget` removed, the first one first."""
    demo_data: NotRequired[dict[str, Any]]
    summary: NotRequired[dict[str, Any]]
    """Summary of `groupvit demo-data`."""


@with_config(KEEP_OTHERS)
class UrlCounts(TypedDict):
    """The URL list of a download. Version 1 has no `urls`."""

    sample: list[str]
    list: str
    digest: str
    rows: Count
    urls: NotRequired[Count]


@with_config(KEEP_OTHERS)
class DownloadPass(TypedDict):
    """One pass of a download over the list."""

    folder: Annotated[str, Field(pattern=r"\A(retry-\d{4,9})?\z")]
    """Relative to the download. The first pass has none."""
    rows: Count
    finished: bool


@with_config(KEEP_OTHERS)
class FixedByDownload(TypedDict):
    rows_per_shard: Annotated[int, Field(ge=1, le=_MOST_ROWS)]


@with_config(KEEP_OTHERS)
class DownloadVersion(TypedDict):
    """The part of download.json that no version changes."""

    version: int


@with_config(KEEP_OTHERS)
class DownloadRecord(DownloadVersion):
    """download.json"""

    urls: UrlCounts
    fixed: FixedByDownload
    passes: Annotated[list[DownloadPass], Field(min_length=1)]


@with_config(KEEP_OTHERS)
class ShardStatistics(TypedDict):
    """NUMBER_stats.json of a shard, as img2dataset writes it."""

    count: Annotated[int, Field(ge=0, le=_MOST_ROWS)]
    successes: NotRequired[Count]
    status_dict: NotRequired[dict[str, Count]]
