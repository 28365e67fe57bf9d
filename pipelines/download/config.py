"""What can be said about a download: which list, where to, how fast, within which limits."""

import dataclasses
from typing import Any, Literal
from urllib.parse import urlsplit

from pipelines.download.safe_http import FetchLimits
from pipelines.url_lists.presets import PRESETS, Columns, Preset


@dataclasses.dataclass(frozen=True, kw_only=True)
class DownloadConfig:
    """Which list is downloaded, where to, how."""

    url_list: str
    """File, or folder of files, of URLs and captions: csv, tsv, json, jsonl or parquet, also compressed; a local path
    or s3:// URI."""
    out: str
    """Folder for raw shards: a local path or s3:// URI. Finished shards of the same list are kept as they are."""
    preset: Preset | None = None
    """The data set whose published list it is. None: columns are found by their names."""
    url_column: str | None = None
    """Column of the URLs. None: the preset's, else `url`."""
    caption_column: str | None = None
    """Column of the captions, which are texts or lists of texts. None: the preset's, else `caption` or `text`."""
    max_bad_rows: float = 0.01
    """Share of the list's rows that may be bad: broken lines, rows without a URL. They are left out, and written to
    OUT/rejected.jsonl with file, line and reason; more of them are an error."""
    retry_failed: bool = False
    """Fetch the rows again that failed, other than by refusal; what succeeded is not touched."""
    distributor: Literal["multiprocessing", "ray"] = "multiprocessing"
    """`multiprocessing`: processes of this machine. `ray`: the cluster RAY_ADDRESS names, or a local one."""
    num_processes: int | None = None
    """None: one per CPU of this machine. A Ray cluster takes as many as it has CPUs."""
    num_threads: int = 128
    """Downloads at a time, per process."""
    rows_per_shard: int = 10_000
    timeout: float = 10.0
    """Seconds without a byte after which a URL has failed."""
    max_seconds: float = 60.0
    """Longest time for one image, however steadily its bytes come."""
    retries: int = 0
    """Times a failed URL is tried again at once. --retry-failed, later, finds more."""
    max_bytes: int = 50_000_000
    """Largest image file."""
    respect_opt_out: bool = True
    """Leave out images whose server sends X-Robots-Tag with noai, noimageai, noindex or noimageindex."""
    user_agent_token: str | None = None
    """Name in the User-Agent header, by which a site can opt out from this downloader alone."""
    allow_private_addresses: bool = False
    """Also fetch from private, shared and loopback addresses: for intranets. Link-local and metadata addresses stay
    refused."""
    allow_hosts: tuple[str, ...] = ()
    """HOST or HOST:PORT that may have such addresses, others not."""
    preflight: int = 5
    """URLs to try before the work begins; if all fail, it does not begin. 0: off."""
    progress_every_seconds: float = 10.0

    def __post_init__(self) -> None:
        for name, least in (
            ("num_processes", 1), ("num_threads", 1), ("rows_per_shard", 1), ("max_bytes", 1), ("retries", 0),
            ("preflight", 0),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}={value} is too small: give at least {least}")
        for name in ("timeout", "max_seconds", "progress_every_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} is no length of time: give seconds above 0")
        if not 0 <= self.max_bad_rows <= 1:
            raise ValueError(f"max_bad_rows={self.max_bad_rows} is not a share: give 0 to 1, e.g. 0.01 for 1 %")
        for name in ("url_list", "out"):
            if "@" in urlsplit(getattr(self, name)).netloc:
                raise ValueError(f"{name}: holds credentials; give them as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")

    @property
    def columns(self) -> Columns:
        columns = PRESETS[self.preset] if self.preset else Columns()
        if self.url_column is not None:
            columns = dataclasses.replace(columns, url=(self.url_column,), exact=True)
        if self.caption_column is not None:
            columns = dataclasses.replace(columns, caption=(self.caption_column,), caption_second=None, exact=True)
        return columns

    @property
    def limits(self) -> FetchLimits:
        return FetchLimits(
            max_bytes=self.max_bytes,
            max_seconds=self.max_seconds,
            allow_private_addresses=self.allow_private_addresses,
            allow_hosts=self.allow_hosts,
        )

    def fixes_the_result(self) -> dict[str, Any]:
        """What cannot change between the runs of one download."""
        free = {"url_list", "out", "retry_failed", "distributor", "num_processes", "num_threads", "timeout"}
        free |= {"max_seconds", "retries", "preflight", "progress_every_seconds", "max_bad_rows"}
        values = {name: value for name, value in dataclasses.asdict(self).items() if name not in free}
        return values | {"allow_hosts": list(self.allow_hosts)}
