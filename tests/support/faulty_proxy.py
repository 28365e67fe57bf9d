"""A proxy in front of the object store that does to some requests what networks and busy servers do."""

import collections
import http.client
import random
import socket
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

FAULTS = ("unavailable", "reset", "reset after the work was done", "truncated", "stall")
STALL_SECONDS = 2.0
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect"}


class FaultyProxy(ThreadingHTTPServer):
    """Passes requests on to http://127.0.0.1:`port`, and spoils one of every `every`, at a place drawn by `seed`.

    The kinds of FAULTS take turns in an order drawn anew for every round; `faults` counts them.
    """

    daemon_threads = True

    def __init__(self, port: int, *, every: int, seed: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream_port = port
        self.every = every
        self.num_requests = 0
        self.faults: collections.Counter[str] = collections.Counter()
        self._random = random.Random(seed)
        self._place = 0
        self._kinds: list[str] = []
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def draw_fault(self) -> str | None:
        with self._lock:
            if self.num_requests % self.every == 0:
                self._place = self._random.randrange(self.every)
            spoiled = self.num_requests % self.every == self._place
            self.num_requests += 1
            if not spoiled:
                return None
            self._kinds = self._kinds or self._random.sample(FAULTS, len(FAULTS))
            fault = self._kinds.pop()
            self.faults[fault] += 1
            return fault

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that break are what this is for."""

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyProxy

    def do_GET(self) -> None:  # the base class asks for this name, and those below
        fault = self.server.draw_fault()
        body = self._read_body()
        if fault == "reset":
            return self._reset()
        if fault == "unavailable":
            return self._answer(503, {"Content-Type": "application/xml"}, b"<Error><Code>SlowDown</Code></Error>")
        if fault == "stall":
            time.sleep(STALL_SECONDS)
        status, headers, content = self._forward(body)
        if fault == "reset after the work was done" or (fault == "truncated" and not content):
            return self._reset()
        if fault == "truncated":
            self._answer(status, headers, content, num_sent=len(content) // 2)
            return self._reset()
        return self._answer(status, headers, content)

    do_PUT = do_POST = do_DELETE = do_HEAD = do_GET  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on the terminal."""

    def _read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return body

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.upstream_port, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _HOP_BY_HOP | {"content-length"}:
                    connection.putheader(name, value)  # Host too: it is part of what was signed
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            response = connection.getresponse()
            headers = {name: value for name, value in response.getheaders() if name.lower() not in _HOP_BY_HOP}
            return response.status, headers, response.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: dict[str, str], content: bytes, num_sent: int | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() != "content-length" or self.command == "HEAD":
                self.send_header(name, value)
        if self.command != "HEAD" and status != 204:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:num_sent])

    def _reset(self) -> None:
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True
