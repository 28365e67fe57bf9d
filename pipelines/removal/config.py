"""Configuration of `groupvit forget`: which samples of which data set, and whose runs to ask."""

from dataclasses import dataclass

from pipelines import storage


@dataclass(frozen=True, kw_only=True)
class ForgetConfig:
    """Configures which samples to remove from a data set, and which runs may have seen them."""

    data: str
    """Folder of a data set: a local path or s3:// URI. It is not changed."""
    out: str | None = None
    """Folder of the new data set, without the samples. None: only the report is written."""
    urls: tuple[str, ...] = ()
    """URLs of images, http or https alike, or files that list them: names that end in .txt (one entry a line) or .csv
    (the column `url`, or the only one)."""
    hosts: tuple[str, ...] = ()
    """Hosts, each with all its subdomains, or files that list them; a csv has them in the column `host`."""
    sha256: tuple[str, ...] = ()
    """Hashes of original image files, or files that list them; a csv has them in the column `sha256`. For a sample
    without it, the hash of the image in the data set is compared."""
    runs: tuple[str, ...] = ()
    """Folders of runs, or folders that hold runs and sweeps, local or s3://. The report says which of them have seen
    the samples, and at which steps."""
    tracking_uri: str | None = None
    """MLflow server or database. The report also tells of its runs that train on this data set and are not among
    `runs`. None: of none."""
    report: str | None = None
    """JSON file of the report: a local path or s3:// URI. None: forget.json in the new data set, which then names what
    was removed."""

    def __post_init__(self) -> None:
        if not (self.urls or self.hosts or self.sha256):
            raise ValueError("urls, hosts and sha256 are empty: give what to remove, e.g. --urls urls.txt")
        if self.out is None and self.report is None:
            raise ValueError(
                "out and report are missing: give --out for a new data set, or --report for a report alone"
            )
        if self.report is not None and not self.report.endswith(".json"):
            raise ValueError(f"report={self.report} is not JSON: give a file name that ends in .json")
        if self.out is not None and storage.absolute(self.out).rstrip("/") == storage.absolute(self.data).rstrip("/"):
            raise ValueError(f"out={self.out} is the data set itself, which is not changed: give another folder")

    @property
    def report_uri(self) -> str:
        """The file of the report."""
        if self.report is not None:
            return storage.absolute(self.report)
        assert self.out is not None, "__post_init__ asks for one of them"
        return storage.join(storage.absolute(self.out), "forget.json")
