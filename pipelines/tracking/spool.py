"""A queue on disk. It keeps records in order until they are sent, also across restarts of the process."""

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from pipelines.tracking.records import Record, read_record

logger = logging.getLogger(__name__)

MAX_METRICS_PER_BATCH = 900
"""Largest number of metrics in a batch. MLflow accepts 1,000 metrics, params and tags in one request."""
_LONGEST_LINE = 2**24  # bytes
_BLOCK = 2**20  # bytes read at once, from the end


class Spool:
    """Records in a file, one JSON object per line. A second file holds the number of bytes already sent."""

    def __init__(self, folder: Path):
        self.path = folder / "spool.jsonl"
        self._sent_path = folder / "spool.sent"
        self._unwritten: list[str] = []
        self._root = folder.absolute().parent
        self._sent = self._read_sent()
        folder.mkdir(parents=True, exist_ok=True)
        self._cut_torn_line()

    def append(self, records: list[Record]) -> None:
        """Appends records. If they cannot be written (full disk), they stay in memory and are written with the next."""
        self._unwritten += [json.dumps(record) + "\n" for record in records]
        if self._unwritten:
            before = self._size()
            try:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write("".join(self._unwritten))
            except OSError:
                if self.path.exists():
                    os.truncate(self.path, before)  # a part may be on disk; it is written again as a whole
                raise
            self._unwritten = []

    def unsent_batches(self) -> Iterator[tuple[list[Record], int]]:
        """Yields (records, end offset in bytes) in order. Each batch fits in one request."""
        if not self.num_unsent_bytes():
            return
        with self.path.open("rb") as file:
            file.seek(self._sent)
            batch: list[Record] = []
            num_metrics = 0
            end = self._sent
            while line := file.readline(_LONGEST_LINE):
                if not line.endswith(b"\n") and len(line) < _LONGEST_LINE:
                    break  # it is being written
                record = read_record(line, self.path, self._root)
                if record is None:
                    end += len(line)
                    continue
                size = len(record.get("metrics", ()))
                if batch and num_metrics + size > MAX_METRICS_PER_BATCH:
                    yield batch, end
                    batch, num_metrics = [], 0
                batch.append(record)
                num_metrics += size
                end += len(line)
            yield batch, end  # empty if the last lines are invalid: they count as sent

    def mark_sent(self, end: int) -> None:
        self._sent = end
        temporary = self._sent_path.with_suffix(".tmp")
        temporary.write_text(str(end), encoding="utf-8")
        temporary.replace(self._sent_path)

    def num_unsent_bytes(self) -> int:
        return self._size() - self._sent + sum(map(len, self._unwritten))

    def num_unwritten(self) -> int:
        """Returns the number of records that are only in memory, because they could not be written."""
        return len(self._unwritten)

    def _size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def _cut_torn_line(self) -> None:
        """Removes the partial line that a process leaves when it is killed while writing. It would corrupt the next."""
        if not self.path.exists():
            self._sent = 0
            return
        size = whole = self._size()
        with self.path.open("rb") as file:
            while whole:
                start = max(0, whole - _BLOCK)
                file.seek(start)
                if (newline := file.read(whole - start).rfind(b"\n")) >= 0:
                    whole = start + newline + 1
                    break
                whole = start
        if whole < size:
            os.truncate(self.path, whole)
        self._sent = min(self._sent, whole)

    def _read_sent(self) -> int:
        """Reads how much was sent. 0 if the file is missing or corrupted: sending records twice is harmless."""
        try:
            with self._sent_path.open(encoding="utf-8") as file:
                return max(0, int(file.read(32) or 0))
        except FileNotFoundError:
            return 0
        except ValueError:
            logger.warning("tracking: %s is corrupted: all of the spool is sent again", self._sent_path)
            return 0
