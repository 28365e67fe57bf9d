"""Invalid rows of a URL list: records each with its file and line, and raises an error if there are too many."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

REJECTED_FILE = "rejected.jsonl"
_FEW = 1000
"""Number of rows after which reading stops if none is valid."""
_LONGEST_FOUND = 200  # largest number of characters quoted from an invalid row
_ADVICE: Mapping[str, str] = {
    "caption_not_text": "give text, or a list of texts; --caption-column names another column",
    "field_too_long": "leave the row out, or close its quote",
    "invalid_json": "write one JSON object per line",
    "invalid_utf8": "convert the list to UTF-8, e.g. iconv -f LATIN1 -t UTF-8",
    "line_too_long": "write one row per line",
    "lone_surrogate": "write the character whole, e.g. \\ud83d\\ude00, or leave it out",
    "not_an_object": 'write one object per image, e.g. {"url": "http://...", "caption": "..."}',
    "unclosed_quote": 'double each quote within a quoted field: "a ""big"" dog"; tsv files have no quoting',
    "url_missing": "leave these rows out; --url-column names another column",
    "url_not_text": "give one URL per row, as text",
    "wrong_number_of_fields": "check the separator (csv: comma, tsv: tab); in csv, quote fields with commas in them",
}
"""What to do, by reason."""

Reject = Callable[[int, str, str], None]
"""Records an invalid row. Its arguments: the row's number within its file, from 1; the reason, a key of _ADVICE; what
was found."""


class RejectedRows:
    """Counts invalid rows, and writes each to `path` as a line of JSON at once. Must be closed."""

    def __init__(self, path: Path, max_share: float) -> None:
        """`max_share`: largest allowed share of invalid rows."""
        self.counts: Counter[str] = Counter()
        """Number of invalid rows by reason."""
        self.num_good = 0
        self._max_share = max_share
        self._first: dict[str, str] = {}
        self._file = path.open("w", encoding="utf-8")

    def __enter__(self) -> "RejectedRows":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def of(self, file: str, place: str) -> Reject:
        """Returns a function to record the invalid rows of a file. `place`: the unit of its row numbers, e.g. line."""

        def reject(number: int, reason: str, found: str) -> None:
            assert reason in _ADVICE, reason
            found = found.encode(errors="backslashreplace").decode()
            if len(found) > _LONGEST_FOUND:
                found = f"{found[:_LONGEST_FOUND]}..."
            self._first.setdefault(reason, f"{file}: {place} {number:,}: {found}")
            self.counts[reason] += 1
            entry: dict[str, Any] = {"file": file, place: number, "reason": reason, "found": found}
            self._file.write(json.dumps(entry, ensure_ascii=False) + "\n")

        return reject

    def check(self, *, finished: bool) -> None:
        """Raises ValueError, in one line, if too many rows are invalid, or, before the list is `finished`, all are."""
        num_bad = self.counts.total()
        num_rows = num_bad + self.num_good
        if not (num_bad > self._max_share * num_rows if finished else num_bad >= _FEW and not self.num_good):
            return
        reason = self.counts.most_common(1)[0][0]
        reasons = ", ".join(f"{name} {count:,}" for name, count in self.counts.most_common())
        so_far = "" if finished else " so far"
        raise ValueError(
            f"{self._first[reason]}; {num_bad:,} of {num_rows:,} rows{so_far} are bad ({reasons}), more than "
            f"--max-bad-rows {self._max_share:g}: {_ADVICE[reason]}"
        )
