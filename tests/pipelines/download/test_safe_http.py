"""What the guarded opener reaches and what it refuses, against a server on this machine."""

import http.client
import socket
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pipelines.dataset.raw_shards import failure_reason
from pipelines.download.addresses import refusal
from pipelines.download.safe_http import FetchError, FetchLimits, make_opener
from tests.support.image_server import image_server

PRIVATE = [
    "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "127.0.0.1", "127.8.8.8", "::1", "fd00::1", "fec0::1",
    "::ffff:10.0.0.1", "::ffff:127.0.0.1", "64:ff9b::10.0.0.1", "2002:7f00:1::", "192.0.2.1", "2001:db8::1",
]  # fmt: skip
NEVER = [
    "169.254.169.254", "169.254.0.1", "fe80::1", "fe80::1%lo", "fd00:ec2::254", "100.100.100.200", "168.63.129.16",
    "192.0.0.192", "::ffff:169.254.169.254", "64:ff9b::169.254.169.254", "0.0.0.0", "::", "224.0.0.1", "ff02::1",
    "240.0.0.1", "255.255.255.255", "::127.0.0.1",
]  # fmt: skip
PUBLIC = ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "64:ff9b::8.8.8.8", "::ffff:8.8.8.8"]


@pytest.fixture(scope="module")
def site():
    with image_server(num_good=3) as site:
        yield site


def limits(*hosts, **changes):
    return FetchLimits(**{"max_bytes": 1_000_000, "max_seconds": 20, "allow_hosts": hosts, **changes})


def fetch(url, limits, timeout=10.0):
    """The body, or the reason for which there is none, as curation counts it."""
    try:
        with make_opener(limits).open(urllib.request.Request(url), timeout=timeout) as response:
            return response.read()
    except (FetchError, http.client.HTTPException, OSError, ValueError) as error:
        return failure_reason(str(error))


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_refused_unless_allowed(address):
    assert refusal(address, allow_private=False)
    assert refusal(address, allow_private=True) is None


@pytest.mark.parametrize("address", NEVER)
def test_addresses_that_are_nobodys_web_site_are_refused_always(address):
    assert refusal(address, allow_private=False) and refusal(address, allow_private=True)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_reached(address):
    assert refusal(address, allow_private=False) is None


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "[::ffff:7f00:1]"]
)
def test_every_spelling_of_loopback_is_refused(site, host):
    port = site.host.partition(":")[2]
    path = next(iter(site.bodies))
    before = site.requests.total()
    assert fetch(f"http://{host}:{port}{path}", limits()) == "refused_address"
    assert site.requests.total() == before


def test_allowed_hosts_are_reached_and_no_other_ports(site):
    path = next(iter(site.bodies))
    url = f"http://{site.host}{path}"
    assert fetch(url, limits(site.host)) == site.bodies[path]
    assert fetch(url, limits("127.0.0.1")) == site.bodies[path]
    assert fetch(url, limits(allow_private_addresses=True)) == site.bodies[path]
    assert fetch(url, limits("127.0.0.1:1", "localhost")) == "refused_address"


@pytest.mark.parametrize("case", ["redirect_loopback", "redirect_metadata"])
def test_redirects_are_judged_again(site, case):
    assert fetch(f"http://{site.host}/{case}/0.jpg", limits(site.host)) == "refused_address"


def test_metadata_stays_refused_where_private_addresses_are_allowed(site):
    url = f"http://{site.host}/redirect_metadata/0.jpg"
    assert fetch(url, limits(allow_private_addresses=True)) == "refused_address"
    assert fetch("http://metadata.google.internal/", limits(allow_private_addresses=True)) == "refused_address"


def test_redirects_within_what_is_allowed_are_followed(site):
    url = f"http://{site.host}/redirect_good/0.jpg"
    assert fetch(url, limits(site.host)) == site.bodies["/redirected/0.jpg"]


def test_names_are_resolved_once_and_the_host_header_kept(site, monkeypatch):
    """A DNS that answers with another address the second time finds no second time."""
    port = int(site.host.partition(":")[2])
    answers = iter(["127.0.0.1", "169.254.169.254"])
    resolved = []

    def answer(host, port, **kind):
        resolved.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    path = next(iter(site.bodies))
    assert fetch(f"http://rebind.test:{port}{path}", limits("rebind.test")) == site.bodies[path]
    assert resolved == ["rebind.test"]
    assert fetch(f"http://rebind.test:{port}{path}", limits("rebind.test")) == "refused_address"


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:text/plain,x", "x", "", "http://", "http://a b/"]
)
def test_only_http_exists(url):
    assert fetch(url, limits(allow_private_addresses=True)) == "invalid_url"


def test_letters_that_http_does_not_take_are_quoted(raw):
    assert fetch(f"http://{raw}/ein Bild/für%20alle?q=ü&r=%2F#teil", limits(raw)) == b"proxied"
    assert Raw.seen[0][0] == "GET /ein%20Bild/f%C3%BCr%20alle?q=%C3%BC&r=%2F HTTP/1.1"


def test_credentials_in_a_url_are_not_sent(site):
    before = site.requests.total()
    assert fetch(f"http://user:password@{site.host}/good/0.jpg", limits(site.host)) == "invalid_url"
    assert site.requests.total() == before


@pytest.mark.parametrize(
    ("case", "reason"),
    [("missing", "http_404"), ("truncated", "truncated"), ("endless", "too_large"), ("unavailable", "http_503")],
)
def test_what_goes_wrong_has_a_reason(site, case, reason):
    assert fetch(f"http://{site.host}/{case}/0.jpg", limits(site.host)) == reason


def test_a_silent_server_is_left_after_the_timeout(site):
    assert fetch(f"http://{site.host}/slow/0.jpg", limits(site.host), timeout=0.5) == "timeout"


def test_a_trickling_server_is_left_when_its_time_is_up(site):
    start = time.monotonic()
    assert fetch(f"http://{site.host}/trickle/0.jpg", limits(site.host, max_seconds=1)) == "timeout"
    assert time.monotonic() - start < 10


def test_nothing_listens_and_nothing_resolves():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        assert fetch(f"http://127.0.0.1:{port}/", limits(allow_private_addresses=True)) == "connection"
    assert fetch("http://nowhere.invalid/", limits()) == "dns"


def test_tls_that_is_none(site):
    assert fetch(f"https://{site.host}/good/0.jpg", limits(site.host)) == "tls"


class Raw(BaseHTTPRequestHandler):
    """Answers with the bytes of `answers` by path, whatever they are; keeps the request lines."""

    answers: dict[str, bytes] = {}  # noqa: RUF012 - set by the fixture
    seen: list[tuple[str, str]] = []  # noqa: RUF012

    def do_GET(self):
        self.seen.append((self.requestline, self.headers.get("Host", "")))
        self.wfile.write(self.answers.get(self.path, b"HTTP/1.0 200 OK\r\n\r\nproxied"))

    def do_CONNECT(self):
        self.seen.append((self.requestline, self.headers.get("Host", "")))
        self.send_error(502)

    def log_message(self, format, *args):
        """Quiet."""


@pytest.fixture
def raw():
    Raw.seen = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Raw)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", b"abc"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999999\r\n\r\nabc", "too_large"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", "truncated"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", b"abc"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffff\r\nabc", "truncated"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + bytes(1_000_000), bytes(1_000_000)),
        (b"HTTP/1.1 200 OK\r\n\r\n" + bytes(1_000_001), "too_large"),
        (b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n", "invalid_url"),
        (b"", "connection"),
    ],
)
def test_bodies_are_bounded_whatever_the_header_says(raw, monkeypatch, answer, expected):
    monkeypatch.setattr(Raw, "answers", {"/x": answer})
    assert fetch(f"http://{raw}/x", limits(raw)) == expected


def test_a_proxy_is_used_and_resolves_names_itself(raw, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://{raw}")
    monkeypatch.setenv("https_proxy", f"http://{raw}")
    assert fetch("http://images.invalid/a.jpg", limits()) == b"proxied"
    assert fetch("https://images.invalid/a.jpg", limits()) == "connection"  # this proxy opens no tunnel
    assert [line for line, _ in Raw.seen] == [
        "GET http://images.invalid/a.jpg HTTP/1.1",
        "CONNECT images.invalid:443 HTTP/1.0",
    ]


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    "host", ["127.0.0.1", "10.0.0.1", "localhost", "2130706433", "[::1]", "169.254.169.254", "metadata.google.internal"]
)
def test_a_proxy_is_not_asked_for_what_is_spelled_private(raw, monkeypatch, scheme, host):
    monkeypatch.setenv(f"{scheme}_proxy", f"http://{raw}")
    assert fetch(f"{scheme}://{host}/", limits()) == "refused_address"
    assert Raw.seen == []
