"""Whether a site lets its images be used: robots.txt (RFC 9309), and headers beside X-Robots-Tag's noai.

A handler for a `urllib` opener checks every request, those of redirects too, and every answer. robots.txt itself comes
through an opener with the same limits.
"""

import dataclasses
import functools
import http.client
import re
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import OrderedDict
from collections.abc import Sequence
from urllib.parse import urlsplit

from protego import Protego

from pipelines.download.safe_http import FetchError, FetchLimits, make_opener

_MAX_BYTES = 500 * 1024  # of a robots.txt, as in RFC 9309; the rest is ignored
_PIECE = 1 << 16
_MAX_REDIRECTS = 5
_SECONDS_KEPT, _SECONDS_FAILURE_KEPT = 24 * 3600, 600
_MAX_CACHE_BYTES = 2**28  # of a process, estimated
_BYTES_PER_HOST, _BYTES_PER_CHARACTER = 1000, 30  # of the cache; a rule takes much more memory than its text
_NAME_OF_DOWNLOADER = "img2dataset"
_USER_AGENT = re.compile(r"\s*user[- ]?agent\s*[:\s](?P<name>[^#]*)", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Consent:
    """Which wishes of sites are respected."""

    robots_txt: bool = True
    headers: bool = True
    """`X-Robots-Tag: noml` and `tdm-reservation: 1`. img2dataset looks for the other directives of X-Robots-Tag."""
    user_agent_token: str | None = None
    """Name under which sites know this downloader. None: img2dataset."""

    @property
    def name(self) -> str:
        return (self.user_agent_token or _NAME_OF_DOWNLOADER).partition("/")[0].strip().lower()


def consent_handlers(consent: Consent, limits: FetchLimits) -> Sequence[urllib.request.BaseHandler]:
    """Returns the handlers for `make_opener`. All openers of a process share what they know of robots.txt."""
    robots = _shared_robots(limits, consent.name) if consent.robots_txt else None
    return [ConsentHandler(robots, consent)] if robots or consent.headers else []


@functools.lru_cache(maxsize=1)
def _shared_robots(limits: FetchLimits, name: str) -> "RobotsTxt":
    return RobotsTxt(limits, name)


class ConsentHandler(urllib.request.BaseHandler):
    """Raises FetchError or UnreachableError for what a site does not want to be used."""

    def __init__(self, robots: "RobotsTxt | None", consent: Consent) -> None:
        self._robots, self._consent = robots, consent

    def http_request(self, request: urllib.request.Request) -> urllib.request.Request:
        if self._robots is not None:
            self._robots.check(request)
        return request

    def http_response(
        self, request: urllib.request.Request, response: http.client.HTTPResponse
    ) -> http.client.HTTPResponse:
        if self._consent.headers and 200 <= response.status < 300:
            refusal = _refusal_in_headers(response.headers, self._consent.name)
            if refusal is not None:
                response.close()
                raise refusal
        return response

    https_request, https_response = http_request, http_response


def _refusal_in_headers(headers: http.client.HTTPMessage, name: str) -> FetchError | None:
    for value in headers.get_all("X-Robots-Tag", []):
        robot, colon, directives = value.rpartition(":")
        words = [word.strip().lower() for word in directives.split(",")]
        if "noml" in words and (not colon or robot.strip().lower() == name):
            return FetchError("noml", "X-Robots-Tag of the image")
    if any(value.strip() == "1" for value in headers.get_all("tdm-reservation", [])):
        return FetchError("tdm_reservation", "header of the image")
    return None


class UnreachableError(Exception):
    """robots.txt of a host cannot be had, so nothing of the host is fetched. The message is that of the failure."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Rules:
    """What is known of a host."""

    rules: Protego | None = None
    """None: all is allowed, unless there is a failure."""
    failure: str | None = None
    num_bytes: int = _BYTES_PER_HOST

    @property
    def seconds_kept(self) -> float:
        return _SECONDS_KEPT if self.failure is None else _SECONDS_FAILURE_KEPT


class _Host:
    """A host in the cache. Who holds the lock fetches its robots.txt; the others wait."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.found: _Rules | None = None
        self.until = float("inf")


class RobotsTxt:
    """Fetches robots.txt once per host and scheme, keeps it for a day, and asks it. Threads may share it.

    Args:
        limits: What a request may reach and consume.
        name: Product token of this downloader, in lower case.
    """

    def __init__(self, limits: FetchLimits, name: str) -> None:
        self._name = name
        self._opener = make_opener(dataclasses.replace(limits, max_bytes=sys.maxsize), _FewRedirects())
        self._hosts: OrderedDict[str, _Host] = OrderedDict()
        self._num_bytes, self._lock = 0, threading.Lock()

    def check(self, request: urllib.request.Request) -> None:
        """Raises FetchError if robots.txt disallows the URL, or UnreachableError if it cannot be had."""
        try:
            parts = urlsplit(request.full_url)
        except ValueError:  # who opens it says so
            return
        if not parts.hostname or "@" in parts.netloc or "\\" in parts.netloc:  # refused later
            return
        found = self._found(f"{parts.scheme.lower()}://{parts.netloc.lower()}", request)
        if found.failure is not None:
            raise UnreachableError(found.failure)
        if found.rules is not None and not found.rules.can_fetch(request.full_url, self._name):
            raise FetchError("robots_txt", f"disallowed for {self._name}")

    def _found(self, origin: str, request: urllib.request.Request) -> _Rules:
        with self._lock:
            host = self._hosts.get(origin)
            if host is None or host.until < time.monotonic():
                if host is not None and host.found is not None:
                    self._num_bytes -= host.found.num_bytes
                host = self._hosts[origin] = _Host()
            self._hosts.move_to_end(origin)
        with host.lock:
            if host.found is None:
                host.found = self._fetch(origin, request)
                host.until = time.monotonic() + host.found.seconds_kept
                self._make_room(host.found.num_bytes)
            return host.found

    def _make_room(self, num_bytes: int) -> None:
        with self._lock:
            self._num_bytes += num_bytes
            for origin in list(self._hosts) if self._num_bytes > _MAX_CACHE_BYTES else ():
                found = self._hosts[origin].found
                if found is not None:
                    del self._hosts[origin]
                    self._num_bytes -= found.num_bytes
                if self._num_bytes <= _MAX_CACHE_BYTES // 2:
                    break

    def _fetch(self, origin: str, request: urllib.request.Request) -> _Rules:
        headers = {"User-Agent": request.get_header("User-agent", self._name)}
        robots = urllib.request.Request(f"{origin}/robots.txt", headers=headers)
        try:
            with self._opener.open(robots, timeout=request.timeout) as response:
                return parse(_read(response), self._name)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code < 500:  # also endless redirects: RFC 9309, 2.3.1.2 and 2.3.1.3
                return _Rules()
            return _Rules(failure=str(FetchError("robots_error", f"robots.txt answers {error.code}")))
        except Exception as error:  # as for images, any error is a failure of the URL
            return _Rules(failure=f"{error or type(error).__name__} (robots.txt)")


def parse(content: bytes, name: str) -> _Rules:
    """Returns the rules for the product token `name` (lower case) in a robots.txt, or in its first 500 KiB."""
    if len(content) > _MAX_BYTES:
        content = content[:_MAX_BYTES].rpartition(b"\n")[0]  # half a rule would mean something else
    text = content.decode("utf-8-sig", errors="replace")
    if text.lstrip().startswith("<"):  # a page that answers everything
        return _Rules()
    # The parser copies every rule for every name of its group, and finds names within others. It gets three names.
    lines = [_with_known_name(line, name) for line in text.splitlines()]
    rules = Protego.parse("\n".join(lines))
    return _Rules(rules=rules, num_bytes=_BYTES_PER_HOST + _BYTES_PER_CHARACTER * len(text))


def _with_known_name(line: str, name: str) -> str:
    """Replaces the robot's name on a line: by `name` if it is that, with or without a version; else by another."""
    if (match := _USER_AGENT.match(line)) is None:
        return line
    found = match["name"].strip().lower()
    if found == "*":
        return "user-agent: *"
    same = found.partition("/")[0].strip(" *") == name
    return f"user-agent: {name}" if same else "user-agent: -"


def _read(response: http.client.HTTPResponse) -> bytes:
    """Reads a body, or a little more of it than counts."""
    pieces, num_bytes = [], 0
    while num_bytes <= _MAX_BYTES and (piece := response.read(_PIECE)):
        pieces.append(piece)
        num_bytes += len(piece)
    if num_bytes <= _MAX_BYTES and response.length:
        raise FetchError("truncated", f"{num_bytes} bytes of {num_bytes + response.length}")
    return b"".join(pieces)


class _FewRedirects(urllib.request.HTTPRedirectHandler):
    max_redirections = _MAX_REDIRECTS
