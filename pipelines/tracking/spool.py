"""A queue on disk. It keeps records in order until they are sent, also across restarts of the process."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Record = dict[str, Any]

MAX_METRICS_PER_BATCH = 900
"""Largest number of metrics in a batch. MLflow accepts 1,000 metrics, params and tags in one request."""


class Spool:
    """Records in a file, one JSON object per line. A second file holds the number of bytes already sent."""

    def __init__(self, folder: Path):
        self.path = folder / "spool.jsonl"
        self._sent_path = folder / "spool.sent"
        self._unwritten: list[str] = []
        self._sent = int(self._sent_path.read_text(encoding="utf-8") or 0) if self._sent_path.exists() else 0
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
            for line in file:
                record = json.loads(line)
                size = len(record.get("metrics", ()))
                if batch and num_metrics + size > MAX_METRICS_PER_BATCH:
                    yield batch, end
                    batch, num_metrics = [], 0
                batch.append(record)
                num_metrics += size
                end += len(line)
            if batch:
                yield batch, end

    def mark_sent(self, end: int) -> None:
        self._sent = end
        temporary = self._sent_path.with_suffix(".tmp")
        temporary.write_text(str(end), encoding="utf-8")
        temporary.replace(self._sent_path)

    def num_unsent_bytes(self) -> int:
        return self._size() - self._sent + sum(map(len, self._unwritten))

    def _size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def _cut_torn_line(self) -> None:
        """Removes the partial line that a process leaves when it is killed while writing. It would corrupt the next."""
        if not self.path.exists():
            self._sent = 0
            return
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(self.path, whole)
        self._sent = min(self._sent, whole)
