"""The lists of what to remove: URLs, hosts, hashes of files."""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from pipelines import storage
from pipelines.curation.opt_out import domains_of, url_key
from pipelines.removal.config import ForgetConfig

Kind = Literal["url", "host", "sha256"]
_FLAGS: dict[Kind, str] = {"url": "urls", "host": "hosts", "sha256": "sha256"}
_MAX_BYTES = 2**30  # of a list
_SHA256 = re.compile(r"[0-9a-f]{64}")
_HOST = re.compile(r"[^\s/@:?#]+")
_USER_INFO = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*://)[^/?#]*@")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One thing to remove."""

    kind: Kind
    text: str
    """As it was given, without credentials."""


class Entries:
    """Looks samples up in the lists. Takes about 300 bytes per entry."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.all = tuple(dict.fromkeys(entries))
        self._numbers: dict[tuple[Kind, str], int] = {}
        for number, entry in enumerate(self.all):
            self._numbers.setdefault((entry.kind, _key(entry)), number)
        self.has_hashes = any(entry.kind == "sha256" for entry in self.all)
        self._has_hosts = any(entry.kind == "host" for entry in self.all)

    def matching(self, url: str | None, sha256: str | None) -> list[int]:
        """Returns the numbers of the entries that a sample matches."""
        keys: list[tuple[Kind, str]] = []
        if url:
            keys.append(("url", url_key(url)))
            for domain in (domains_of(url) or ()) if self._has_hosts else ():
                keys.append(("host", _ascii(domain)))
        if sha256:
            keys.append(("sha256", sha256.lower()))
        return [self._numbers[key] for key in keys if key in self._numbers]


def read_entries(config: ForgetConfig) -> Entries:
    """Reads all lists of `config`. Raises ValueError, with list and line, for what is no URL, host or hash."""
    entries: list[Entry] = []
    for kind, flag in _FLAGS.items():
        for value in getattr(config, flag):
            for place, text in _texts(kind, flag, value):
                entry = Entry(kind=kind, text=_USER_INFO.sub(r"\1", text))
                if reason := _wrong_with(entry):
                    raise ValueError(f"{place}: {text[:100]!r} {reason}")
                entries.append(entry)
    if not entries:
        raise ValueError("urls, hosts and sha256 name only empty lists: give what to remove")
    return Entries(entries)


def _texts(kind: Kind, flag: str, value: str) -> Iterator[tuple[str, str]]:
    """Yields the entries that a value of a flag stands for, each with its place for messages."""
    is_list = value.endswith((".txt", ".csv")) and not value.startswith(("http://", "https://"))
    if not is_list:
        yield flag, value.strip()
        return
    try:
        text = storage.read_bytes(value, _MAX_BYTES).decode("utf-8-sig")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ValueError(f"{flag}={value}: there is no such file; give a list, or the values themselves") from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{flag}={value}: is not UTF-8 text ({error.reason} at byte {error.start}); convert it"
        ) from error
    if value.endswith(".txt"):
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip() and not line.startswith("#"):
                yield f"{flag}={value} line {number}", line.strip()
        return
    try:
        yield from _texts_of_csv(kind, f"{flag}={value}", text)
    except csv.Error as error:
        raise ValueError(
            f"{flag}={value}: is not a csv ({error}); give one entry a line, in a file that ends in .txt"
        ) from error


def _texts_of_csv(kind: Kind, where: str, text: str) -> Iterator[tuple[str, str]]:
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    column: int | None = None
    for row in rows:
        if not any(cell.strip() for cell in row):
            continue
        if column is None:
            names = [cell.strip().lower() for cell in row]
            if found := [name for name in (kind, _FLAGS[kind]) if name in names]:
                column = names.index(found[0])
                continue
            if len(row) > 1:
                raise ValueError(f"{where}: has {len(row)} columns and none is named {kind}; name it in the first line")
            column = 0
        if len(row) <= column:
            raise ValueError(f"{where} line {rows.line_num}: has {len(row)} columns, and {kind} is number {column + 1}")
        if row[column].strip():
            yield f"{where} line {rows.line_num}", row[column].strip()


def _wrong_with(entry: Entry) -> str | None:
    """Returns why an entry cannot be looked up."""
    if entry.kind == "sha256":
        return None if _SHA256.fullmatch(_key(entry)) else "is not a sha256: give 64 hexadecimal digits"
    if entry.kind == "host":
        return (
            None
            if _HOST.fullmatch(entry.text)
            else "is not a host: give a name like example.org, without scheme and path"
        )
    domains = domains_of(entry.text)
    if not domains or not domains[0] or "/" not in url_key(entry.text):
        return "is not the URL of an image: give all of it, like https://example.org/photo.jpg"
    return None


def _key(entry: Entry) -> str:
    """Returns what an entry has in common with the samples that it matches."""
    if entry.kind == "url":
        return url_key(entry.text)
    return _ascii(entry.text.lower().strip(".")) if entry.kind == "host" else entry.text.lower()


def _ascii(host: str) -> str:
    """Returns a host as DNS spells it; unchanged if it has no such spelling."""
    if host.isascii():
        return host
    try:
        return host.encode("idna").decode()
    except UnicodeError:
        return host
