"""Opt-out lists: images that must not be used, given by URL, by domain or by the sha256 of the file."""

import hashlib
import re
from urllib.parse import urlsplit

from pipelines import storage

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


class OptOutList:
    """Looks rows up in the list. Every process holds it in memory: about 150 bytes per entry."""

    def __init__(self, content: str) -> None:
        lines = [line.strip() for line in content.splitlines()]
        entries = [line for line in lines if line and not line.startswith("#")]
        self._sha256 = frozenset(entry.lower() for entry in entries if _SHA256.fullmatch(entry))
        self._urls = frozenset(url_key(entry) for entry in entries if "/" in entry)
        self._domains = frozenset(
            entry.lower().strip(".") for entry in entries if "/" not in entry and not _SHA256.fullmatch(entry)
        )

    def __len__(self) -> int:
        return len(self._sha256) + len(self._urls) + len(self._domains)

    @property
    def any_sha256(self) -> bool:
        return bool(self._sha256)

    def has_sha256(self, sha256: str) -> bool:
        return sha256.lower() in self._sha256

    def has_url(self, url: str) -> bool:
        """Whether the list contains the URL (http or https), its host or a parent domain."""
        if url_key(url) in self._urls:
            return True
        if not self._domains:
            return False
        domains = domains_of(url)
        # None: nobody can tell which site the image came from.
        return domains is None or any(domain in self._domains for domain in domains)


def read_opt_out(uri: str | None) -> tuple[OptOutList | None, str | None]:
    """Reads the list and the sha256 of its file, or None and None. Raises ValueError if it cannot be read."""
    if uri is None:
        return None, None
    try:
        content = storage.read_bytes(uri)
    except OSError as error:
        raise ValueError(f"opt_out={uri}: cannot be read ({error}); give a file, one entry a line") from error
    try:
        return OptOutList(content.decode("utf-8-sig")), hashlib.sha256(content).hexdigest()
    except UnicodeDecodeError as error:
        raise ValueError(f"opt_out={uri}: is not UTF-8 text ({error}); give one entry a line") from error


def url_key(url: str) -> str:
    """Normalises a URL for the look-up: host in lower case, no scheme or fragment."""
    rest = url.partition("://")[2] or url
    host, slash, path = rest.partition("#")[0].partition("/")
    return f"{host.lower()}{slash}{path}"


def domains_of(url: str) -> list[str] | None:
    """Returns the host of a URL and all domains that it is in, the longest first. None for an invalid URL."""
    try:
        host = (urlsplit(url if "://" in url else f"//{url}").hostname or "").strip(".")
    except ValueError:
        return None
    labels = host.split(".")
    return [".".join(labels[first:]) for first in range(len(labels))]
