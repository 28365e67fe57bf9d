"""Safe HTTP for untrusted URL lists: a `urllib` opener that limits what a URL can reach and how much it can take.

Host names are resolved here, and the connection uses exactly the address that was checked, so that a second DNS answer
cannot change it. Every redirect opens a new connection and is checked again. By default, only public addresses are
allowed. `allow_private_addresses`, or `allow_hosts` for single hosts, also allow private, loopback and shared ones.
Link-local, multicast, reserved and unspecified addresses and the metadata services of clouds are always refused. Only
http and https are supported. Bodies are limited in bytes whatever their header declares. Responses are limited in
seconds, even if they arrive slowly but steadily.

A proxy from the environment (HTTP_PROXY, HTTPS_PROXY, NO_PROXY) resolves names itself. Then only hosts that are written
as addresses can be checked. Preventing the proxy from reaching into its own network is the proxy's responsibility.
"""

import dataclasses
import functools
import http.client
import io
import ipaddress
import socket
import ssl
import string
import time
import urllib.request
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from pipelines.dataset.raw_shards import Reason
from pipelines.download.addresses import METADATA_NAMES, refusal

_PIECE = 1 << 16


class FetchError(Exception):
    """A URL was not fetched. Its message is `reason: detail`, which raw shards store."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FetchLimits:
    """Limits what fetching one URL may reach and consume."""

    max_bytes: int
    """Largest size of a body in bytes."""
    max_seconds: float
    """Longest time for a response in seconds, from its first header to its last byte."""
    allow_private_addresses: bool = False
    allow_hosts: tuple[str, ...] = ()
    """HOST or HOST:PORT, as written in URLs, that may have private addresses."""

    def allows_private(self, host: str, port: int) -> bool:
        host = host.lower().strip("[]")
        return self.allow_private_addresses or any(
            (allowed.hostname, allowed.port or port) == (host, port)
            for allowed in (urlsplit(f"//{entry}") for entry in self.allow_hosts)
        )


def make_opener(limits: FetchLimits, *more: urllib.request.BaseHandler) -> urllib.request.OpenerDirector:
    """Creates an opener that enforces `limits`. It raises FetchError and the errors of urllib and http.client.

    `more` handlers see requests and answers, too. One for redirects takes the place of urllib's.
    """
    opener = urllib.request.OpenerDirector()
    proxies = urllib.request.getproxies()
    follows = any(isinstance(handler, urllib.request.HTTPRedirectHandler) for handler in more)
    for handler in (
        urllib.request.ProxyHandler(proxies),
        _HTTPHandler(limits, proxied="http" in proxies),
        _HTTPSHandler(limits, proxied="https" in proxies),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        *(() if follows else (urllib.request.HTTPRedirectHandler(),)),
        urllib.request.HTTPErrorProcessor(),
        *more,
    ):
        opener.add_handler(handler)
    return opener


def _connect(limits: FetchLimits, host: str, port: int, timeout: float | None) -> socket.socket:
    """Connects to the first allowed address of `host` that answers."""
    if host.lower().rstrip(".") in METADATA_NAMES:
        raise FetchError("refused_address", f"{host} is a metadata service")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        raise FetchError("dns", getattr(error, "strerror", None) or "no valid host name") from error
    allow_private = limits.allows_private(host, port)
    failure = FetchError("dns", "no address")
    for family, kind, protocol, _, target in found:
        address = str(target[0])
        refused = refusal(address, allow_private=allow_private)
        if refused:
            failure = FetchError("refused_address", f"{address} is {refused}")
            continue
        connection = socket.socket(family, kind, protocol)
        connection.settimeout(timeout)
        try:
            connection.connect(target)
        except OSError as error:
            connection.close()
            failure = (
                FetchError("timeout", "no connection in time")
                if isinstance(error, TimeoutError)
                else FetchError("connection", error.strerror or str(error))
            )
        else:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection
    raise failure


def _check_url(request: urllib.request.Request, limits: FetchLimits, *, proxied: bool) -> None:
    parts = urlsplit(request.full_url)
    if "@" in parts.netloc or "\\" in parts.netloc:  # an @ means credentials; parsers disagree about a backslash
        raise FetchError("invalid_url", "credentials or a backslash before the path")
    host = (parts.hostname or "").rstrip(".")
    if not proxied or not host:
        return
    try:
        address = str(ipaddress.ip_address(host))
    except ValueError:
        try:  # 2130706433, 0x7f.1 and similar spellings
            address = socket.inet_ntoa(socket.inet_aton(host.encode("idna").decode()))
        except (OSError, UnicodeError):
            address = "127.0.0.1" if host == "localhost" or host.endswith(".localhost") else ""
    if host in METADATA_NAMES:
        address = "169.254.169.254"
    allow_private = limits.allows_private(host, parts.port or (443 if parts.scheme == "https" else 80))
    refused = address and refusal(address, allow_private=allow_private)
    if refused:
        raise FetchError("refused_address", f"{host} is {refused}")


def _quoted(request: urllib.request.Request) -> urllib.request.Request:
    """Quotes spaces and letters that HTTP does not allow, because lists contain URLs as browsers show them."""
    parts = urlsplit(request.full_url)
    path, query = (quote(part, safe=string.punctuation) for part in (parts.path, parts.query))
    if (path, query) != (parts.path, parts.query):
        request.full_url = urlunsplit(parts._replace(path=path, query=query))
    return request


class _HTTPHandler(urllib.request.HTTPHandler):
    def __init__(self, limits: FetchLimits, *, proxied: bool) -> None:
        super().__init__()
        self._limits, self._proxied = limits, proxied

    def http_request(self, request: urllib.request.Request) -> urllib.request.Request:
        return super().http_request(_quoted(request))

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        _check_url(req, self._limits, proxied=self._proxied)
        connection: Any = functools.partial(_HTTPConnection, self._limits, req.has_proxy())
        return self.do_open(connection, req)


class _HTTPSHandler(urllib.request.HTTPSHandler):
    def __init__(self, limits: FetchLimits, *, proxied: bool) -> None:
        self._tls = ssl.create_default_context()
        super().__init__(context=self._tls)
        self._limits, self._proxied = limits, proxied

    def https_request(self, request: urllib.request.Request) -> urllib.request.Request:
        return super().https_request(_quoted(request))

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        _check_url(req, self._limits, proxied=self._proxied)
        connection: Any = functools.partial(_HTTPSConnection, self._limits, self._tls)
        return self.do_open(connection, req)


class _HTTPConnection(http.client.HTTPConnection):
    """Connects to `host`: the URL's, or that of a proxy, which is trusted and not checked."""

    def __init__(self, limits: FetchLimits, to_proxy: bool, host: str, *, timeout: float | None) -> None:
        super().__init__(host, timeout=timeout)
        self._limits, self._to_proxy = limits, to_proxy
        self.response_class: Any = functools.partial(_BoundedResponse, limits, timeout)

    def connect(self) -> None:
        if self._to_proxy:
            super().connect()
        else:
            self.sock = _connect(self._limits, self.host, self.port, self.timeout)


class _HTTPSConnection(http.client.HTTPSConnection):
    def __init__(self, limits: FetchLimits, tls: ssl.SSLContext, host: str, *, timeout: float | None) -> None:
        super().__init__(host, timeout=timeout, context=tls)
        self._limits, self._tls, self._to_proxy = limits, tls, False
        self.response_class: Any = functools.partial(_BoundedResponse, limits, timeout)

    def set_tunnel(self, host: str, port: int | None = None, headers: Any = None) -> None:
        self._to_proxy = True  # urllib sets up a tunnel only if the environment names a proxy
        super().set_tunnel(host, port, headers)

    def connect(self) -> None:
        try:
            if self._to_proxy:
                super().connect()
                return
            connection = _connect(self._limits, self.host, self.port, self.timeout)
            try:
                self.sock = self._tls.wrap_socket(connection, server_hostname=self.host)
            except BaseException:
                connection.close()
                raise
        except ssl.SSLError as error:
            raise FetchError("tls", getattr(error, "verify_message", None) or error.reason or str(error)) from error


class _BoundedResponse(http.client.HTTPResponse):
    def __init__(
        self,
        limits: FetchLimits,
        timeout: float | None,
        sock: socket.socket,
        debuglevel: int = 0,
        method: str | None = None,
        url: str | None = None,
    ) -> None:
        super().__init__(sock, debuglevel, method, url)
        self._max_bytes = limits.max_bytes
        buffered: Any = self.fp
        self.fp: Any = io.BufferedReader(_TimedReader(sock, buffered.detach(), limits.max_seconds, timeout), _PIECE)

    def begin(self) -> None:
        super().begin()
        if self.status == http.HTTPStatus.OK and self.length is not None and self.length > self._max_bytes:
            raise FetchError("too_large", f"Content-Length is more than {self._max_bytes} bytes")

    def read(self, amt: int | None = None) -> bytes:
        """Reads a whole body in pieces, so that no header decides how much memory is allocated at once."""
        if amt is not None:
            return super().read(amt)
        pieces, num_bytes = [], 0
        try:
            while piece := super().read(_PIECE):
                pieces.append(piece)
                num_bytes += len(piece)
                if num_bytes > self._max_bytes:
                    raise FetchError("too_large", f"more than {self._max_bytes} bytes")
        except http.client.IncompleteRead as error:
            raise FetchError("truncated", "a chunk ended early") from error
        if self.length:  # number of promised bytes that are missing
            raise FetchError("truncated", f"{num_bytes} bytes of {num_bytes + self.length}")
        return b"".join(pieces)


class _TimedReader(io.RawIOBase):
    """Reads bytes from a socket until a deadline. The socket's own timeout restarts with every byte."""

    def __init__(self, sock: socket.socket, raw: Any, max_seconds: float, timeout: float | None) -> None:
        self._sock, self._raw = sock, raw
        self._max_seconds, self._timeout = max_seconds, timeout
        self._deadline = time.monotonic() + max_seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise FetchError("timeout", f"not done after {self._max_seconds:g} s")
        self._sock.settimeout(left if self._timeout is None else min(left, self._timeout))
        try:
            return self._raw.readinto(buffer)
        except TimeoutError as error:
            raise FetchError("timeout", "no bytes in time") from error
        except OSError as error:
            raise FetchError("connection", error.strerror or str(error)) from error

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()
