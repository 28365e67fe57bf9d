"""Progress of a download. Each shard in progress reports to a small file in the temporary folder."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from pipelines import documents, storage
from pipelines.console.progress import ProgressLine
from pipelines.dataset.raw_shards import TEMPORARY, read_stats
from pipelines.documents import Count

_EVERY_SECONDS = 2.0  # between two reports of a shard
_ENDING = ".progress"


class ShardProgress:
    """Reports, from the process that fetches a shard, the number of its rows done and of those that succeeded."""

    def __init__(self, folder: str, number: int) -> None:
        """`folder` is the folder of the pass."""
        self._uri = storage.join(folder, TEMPORARY, f"{number}{_ENDING}")
        self._done = self._succeeded = 0
        self._written = time.monotonic()

    def add(self, *, succeeded: bool) -> None:
        self._done += 1
        self._succeeded += succeeded
        if time.monotonic() - self._written >= _EVERY_SECONDS:
            self._written = time.monotonic()
            with contextlib.suppress(OSError):  # a failed report must not stop the download
                storage.write_bytes(self._uri, json.dumps([self._done, self._succeeded]).encode())

    def close(self) -> None:
        with contextlib.suppress(OSError):
            storage.remove_file(self._uri)


def read_progress(folder: str) -> dict[int, tuple[int, int]]:
    """Returns (rows done, rows succeeded) of each shard in progress, by shard number."""
    found: dict[int, tuple[int, int]] = {}
    work = storage.join(folder, TEMPORARY)
    for name in storage.list_files(work):
        if name.endswith(_ENDING):
            with contextlib.suppress(FileNotFoundError, ValueError):  # the shard is done by now
                done, succeeded = documents.read(storage.join(work, name), tuple[Count, Count], "fetch its shard again")
                found[int(name.removesuffix(_ENDING))] = done, succeeded
    return found


@contextlib.contextmanager
def showing_progress(
    folder: str, num_rows: int, before: Mapping[int, dict[str, Any]], every_seconds: float
) -> Iterator[None]:
    """Shows progress while shards are fetched into `folder`. `before`: the statistics of existing shards."""
    known, stop = dict(before), threading.Event()
    line = ProgressLine(
        "fetched", num_rows, "URLs", done=sum(stats["count"] for stats in known.values()), every_seconds=every_seconds
    )

    def look() -> None:
        nonlocal known
        try:
            under_way = read_progress(folder)
            known = read_stats(folder, known)
        except OSError:
            return  # a failed check must not stop the download
        counts = [(stats["count"], stats.get("successes", 0)) for stats in known.values()]
        counts += [count for number, count in under_way.items() if number not in known]
        num_done, num_succeeded = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
        line.set(num_done, f"{num_succeeded / num_done:.0%} arrived" if num_done else None)

    def keep_looking() -> None:
        while not stop.wait(every_seconds):
            look()

    thread = threading.Thread(target=keep_looking, name="download-progress", daemon=True)
    with line:
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
        look()
