"""Configuration of a download: its URL list, output folder, speed and limits."""

import dataclasses
from typing import Any, Literal
from urllib.parse import urlsplit

from pipelines.download.consent import Consent
from pipelines.download.safe_http import FetchLimits
from pipelines.errors import require_at_least
from pipelines.url_lists.presets import PRESETS, Columns, Preset


@dataclasses.dataclass(frozen=True, kw_only=True)
class DownloadConfig:
    """Configures which list to download, where to, and how."""

    url_list: str
    """File, or folder of files, with URLs and captions: csv, tsv, json, jsonl or parquet, optionally compressed. A
    local path or s3:// URI."""
    out: str
    """Output folder for raw shards: a local path or s3:// URI. Finished shards of the same list are kept."""
    preset: Preset | None = None
    """Data set that published the list. None: find the columns by their names."""
    url_column: str | None = None
    """Column with the URLs. None: the preset's column, else `url`."""
    caption_column: str | None = None
    """Column with the captions: texts or lists of texts. None: the preset's column, else `caption` or `text`."""
    max_bad_rows: float = 0.01
    """Largest allowed share of invalid rows in the list: broken lines and rows without a URL. They are skipped and
    written to OUT/rejected.jsonl with file, line and reason. A larger share is an error."""
    retry_failed: bool = False
    """Whether to fetch failed rows again, except refused ones. Successful rows are not touched."""
    distributor: Literal["multiprocessing", "ray"] = "multiprocessing"
    """`multiprocessing`: processes on this machine. `ray`: the cluster that RAY_ADDRESS names, else a local one."""
    num_processes: int | None = None
    """Number of processes. None: one per CPU of this machine. A Ray cluster runs as many as it has CPUs."""
    num_threads: int = 128
    """Number of concurrent downloads per process."""
    rows_per_shard: int = 10_000
    timeout: float = 10.0
    """Seconds without receiving a byte after which a URL fails."""
    max_seconds: float = 60.0
    """Longest time in seconds for one image, even if its bytes keep arriving."""
    retries: int = 0
    """Number of immediate retries of a failed URL. A later run with --retry-failed recovers more."""
    max_bytes: int = 50_000_000
    """Size in bytes of the largest image file."""
    respect_opt_out: bool = True
    """Whether to skip images whose server sends X-Robots-Tag with noai, noimageai, noindex, noimageindex or noml, or
    tdm-reservation: 1."""
    respect_robots_txt: bool = True
    """Whether to skip images that robots.txt of their host disallows (RFC 9309), and those of hosts whose robots.txt
    cannot be had. It is fetched once per host in each process."""
    user_agent_token: str | None = None
    """Name in the User-Agent header. Sites can use it, in robots.txt and X-Robots-Tag, to opt out of this downloader
    alone. None: robots.txt is asked for img2dataset."""
    allow_private_addresses: bool = False
    """Whether to also fetch from private, shared and loopback addresses, e.g. on an intranet. Link-local and metadata
    addresses stay refused."""
    allow_hosts: tuple[str, ...] = ()
    """HOST or HOST:PORT that may have private, shared or loopback addresses; other hosts may not."""
    preflight: int = 5
    """Number of URLs to try before the download starts. If all fail, it does not start. 0 disables this check."""
    progress_every_seconds: float = 10.0

    def __post_init__(self) -> None:
        require_at_least(self, num_processes=1, num_threads=1, rows_per_shard=1, max_bytes=1, retries=0, preflight=0)
        for name in ("timeout", "max_seconds", "progress_every_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} is not a length of time: give seconds above 0")
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

    @property
    def consent(self) -> Consent:
        return Consent(
            robots_txt=self.respect_robots_txt, headers=self.respect_opt_out, user_agent_token=self.user_agent_token
        )

    def fixes_the_result(self) -> dict[str, Any]:
        """Returns the options that must not change between runs of the same download."""
        free = {"url_list", "out", "retry_failed", "distributor", "num_processes", "num_threads", "timeout"}
        free |= {"max_seconds", "retries", "preflight", "progress_every_seconds", "max_bad_rows"}
        values = {name: value for name, value in dataclasses.asdict(self).items() if name not in free}
        return values | {"allow_hosts": list(self.allow_hosts)}
