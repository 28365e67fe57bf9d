"""robots.txt and the headers by which sites refuse, against servers on this machine."""

import contextlib
import dataclasses
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.dataset.raw_shards import failure_reason
from pipelines.download import consent as download_consent
from pipelines.download.consent import Consent, RobotsTxt, consent_handlers, parse
from pipelines.download.safe_http import FetchError, FetchLimits, make_opener

LIMITS = FetchLimits(max_bytes=1_000_000, max_seconds=10, allow_private_addresses=True)
RULES = """\
User-agent: *
Disallow: /private/
Allow: /private/open/
Disallow: /*.gif$

user-agent: IMG2dataset/1.47 # by name
user-agent: other
Disallow: /named
"""

Answer = Callable[[BaseHTTPRequestHandler], None]


@dataclasses.dataclass
class Site:
    """A server. `answers` has what it answers to a path; all else is an image."""

    origin: str
    answers: dict[str, Answer]
    requests: Counter[str] = dataclasses.field(default_factory=Counter)
    agents: list[str] = dataclasses.field(default_factory=list)

    def opener(self, **consent: object) -> urllib.request.OpenerDirector:
        robots = RobotsTxt(LIMITS, Consent(**consent).name)  # type: ignore[arg-type]
        handler = download_consent.ConsentHandler(robots, Consent(**consent))  # type: ignore[arg-type]
        return make_opener(LIMITS, handler)

    def fetch(self, path: str, opener: urllib.request.OpenerDirector | None = None) -> str | None:
        """Returns the reason why a path is not fetched; None if it is."""
        request = urllib.request.Request(self.origin + path, headers={"User-Agent": "us"})
        try:
            with (opener or self.opener()).open(request, timeout=3) as response:
                assert response.read() == b"image"
        except Exception as error:
            return failure_reason(str(error))
        return None


def send(body: bytes = b"image", status: int = 200, declared: int | None = None, **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        length = len(body) if declared is None else declared
        for name, value in {"Content-Length": str(length), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        with contextlib.suppress(OSError):  # who has read enough hangs up
            handler.wfile.write(body)

    return answer


@pytest.fixture
def site() -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.requests[self.path] += 1
            found.agents.append(self.headers["User-Agent"])
            found.answers.get(self.path, send())(self)

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    found = Site(origin=f"http://127.0.0.1:{server.server_port}", answers={})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield found
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("path", "token", "reason"),
    [
        ("/named/a.jpg", None, "robots_txt"),
        ("/private/a.jpg", None, None),  # a group with our name takes the place of the one for all
        ("/named/a.jpg", "Img2Dataset", "robots_txt"),
        ("/named/a.jpg", "img", None),
        ("/private/a.jpg", "mine", "robots_txt"),
        ("/private/open/a.jpg", "mine", None),  # the longest match
        ("/a.gif", "mine", "robots_txt"),
        ("/a.gif?x", "mine", None),
        ("/%70rivate/a.jpg", "mine", "robots_txt"),
        ("/a.jpg", "mine", None),
    ],
)
def test_the_rules_of_a_site(site: Site, path: str, token: str | None, reason: str | None) -> None:
    site.answers["/robots.txt"] = send(RULES.encode())
    assert site.fetch(path, site.opener(user_agent_token=token)) == reason
    assert site.requests == {"/robots.txt": 1, **({} if reason else {path: 1})}
    assert set(site.agents) == {"us"}


def test_it_is_fetched_once_for_all_threads(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(0.3)
        send(RULES.encode())(handler)

    site.answers["/robots.txt"] = slow
    opener = site.opener(user_agent_token="mine")
    with ThreadPoolExecutor(16) as threads:
        paths = [f"/{'private' if index % 2 else 'open'}/{index}.jpg" for index in range(64)]
        reasons = list(threads.map(lambda path: site.fetch(path, opener), paths))
    assert reasons == [None, "robots_txt"] * 32
    assert site.requests["/robots.txt"] == 1
    monkeypatch.setattr(time, "monotonic", lambda now=time.monotonic: now() + 24 * 3600 + 1)
    assert site.fetch("/private/1.jpg", opener) == "robots_txt" and site.requests["/robots.txt"] == 2


def test_a_process_shares_what_it_knows(site: Site) -> None:
    site.answers["/robots.txt"] = send(RULES.encode())
    for _ in range(3):
        opener = make_opener(LIMITS, *consent_handlers(Consent(), LIMITS))
        assert site.fetch("/named/1.jpg", opener) == "robots_txt"
    assert site.requests == {"/robots.txt": 1}
    without = consent_handlers(Consent(robots_txt=False, headers=False), LIMITS)
    assert site.fetch("/named/1.jpg", make_opener(LIMITS, *without)) is None


def test_what_is_known_is_bounded(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many hosts, the oldest are forgotten and asked again."""
    monkeypatch.setattr(download_consent, "_MAX_CACHE_BYTES", 20_000)
    robots = RobotsTxt(LIMITS, "mine")
    port = site.origin.rpartition(":")[2]
    for index in [*range(1, 60), 1, 59]:
        request = urllib.request.Request(f"http://127.0.0.{index}:{port}/a.jpg")
        request.timeout = 3
        with contextlib.suppress(Exception):  # the server listens on the first of them alone
            robots.check(request)
    assert len(robots._hosts) <= 20 and robots._num_bytes <= 20_000
    assert site.requests == {"/robots.txt": 2}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (send(status=404), None),
        (send(status=403), None),
        (send(status=429), None),
        (send(status=500), "robots_error"),
        (send(status=503), "robots_error"),
        (send(b"<!doctype html><p>\nUser-agent: *\nDisallow: /"), None),
        (send(b"\xef\xbb\xbfUser-agent: *\nDisallow: /"), "robots_txt"),
        (send(b"\xff\xfe\x00" * 1000), None),
        (send(b""), None),
        (send(b"Disallow: /"), None),
        (send(b"User-agent: *\nDisallow:"), None),
        (send(b"User-agent: *\r\nDisallow: /\r\n", declared=50), "truncated"),
        (send(status=301, Location="/robots.txt"), None),  # for ever
        (send(status=302, Location="/elsewhere"), "robots_txt"),
        (send(status=302, Location="http://169.254.169.254/robots.txt"), "refused_address"),
        (send(status=302, Location="ftp://127.0.0.1/robots.txt"), "invalid_url"),
        (send(status=302), None),
        (lambda handler: handler.wfile.write(b"nonsense\r\n\r\n"), "other"),
        (lambda handler: None, "connection"),
        (lambda handler: time.sleep(4), "timeout"),
    ],
)
def test_answers_that_are_no_rules(site: Site, answer: Answer, reason: str | None) -> None:
    site.answers |= {"/robots.txt": answer, "/elsewhere": send(b"User-agent: *\nDisallow: /")}
    opener = site.opener()
    assert [site.fetch("/a.jpg", opener) for _ in range(2)] == [reason] * 2
    assert site.requests["/a.jpg"] == (2 if reason is None else 0)
    assert site.requests["/robots.txt"] <= 1 + 5


@pytest.mark.parametrize("num_redirects", [5, 6])
def test_five_redirects_are_followed(site: Site, num_redirects: int) -> None:
    """RFC 9309, 2.3.1.2; after more, the file counts as not there."""
    site.answers["/robots.txt"] = send(status=302, Location="/1")
    for index in range(1, num_redirects):
        site.answers[f"/{index}"] = send(status=302, Location=f"/{index + 1}")
    site.answers[f"/{num_redirects}"] = send(b"User-agent: *\nDisallow: /")
    assert site.fetch("/a.jpg") == ("robots_txt" if num_redirects == 5 else None)


def test_of_100_megabytes_500_kib_count(site: Site) -> None:
    begin, end = b"User-agent: *\nDisallow: /private/\n", b"\nDisallow: /late/\n"
    filler = b"# nothing to see here\n"
    fill = (500 * 1024 - len(begin) - len(end) - 1) // len(filler)
    site.answers["/robots.txt"] = send(begin + filler * fill + end + filler * 4_500_000)
    opener, start = site.opener(), time.perf_counter()
    assert site.fetch("/private/a.jpg", opener) == "robots_txt" and site.fetch("/late/a.jpg", opener) == "robots_txt"
    assert time.perf_counter() - start < 20
    # A rule that is cut in the middle would disallow all.
    cut = begin + b"#" * (500 * 1024 - len(begin) - 12) + b"\nDisallow: /cut/in/the/middle\n"
    site.answers["/robots.txt"] = send(cut)
    assert site.fetch("/a.jpg") is None


def test_files_that_would_take_memory_and_hours() -> None:
    """20,000 names of robots with as many rules would be 400 million rules."""
    content = "".join(f"user-agent: a{index}\nuser-agent: m*{'*' * (index % 50)}ine\n" for index in range(8_000))
    content += "".join(f"disallow: /*{index}*{'a*' * 3}$\n" for index in range(15_000))
    start = time.perf_counter()
    rules = parse(content.encode(), "mine").rules
    assert rules is not None and rules.can_fetch("http://a.example/b.jpg", "mine")
    assert time.perf_counter() - start < 20


@settings(deadline=None, max_examples=100)
@given(
    st.lists(
        st.sampled_from(
            ["user-agent: *", "user-agent mine", "allow: /", "disallow: /%zz*$", "disallow: http://[::1/", ":"]
        )
        | st.text(max_size=20)
    ),
    st.text(max_size=20),
)
def test_no_content_is_too_strange(lines: list[str], path: str) -> None:
    rules = parse("\n".join(lines).encode("utf-8", errors="surrogatepass"), "mine").rules
    if rules is not None:
        assert rules.can_fetch(f"http://a.example/{path}", "mine") in (True, False)


def test_a_redirect_to_another_host_asks_that_one(site: Site) -> None:
    port = site.origin.rpartition(":")[2]
    site.answers["/robots.txt"] = send(b"User-agent: *\nDisallow: /secret")
    site.answers["/a.jpg"] = send(status=302, Location=f"http://localhost:{port}/secret.jpg")
    assert site.fetch("/a.jpg") == "robots_txt"
    assert site.requests == {"/robots.txt": 2, "/a.jpg": 1}


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"X_Robots_Tag": "noml"}, "noml"),
        ({"X_Robots_Tag": "nofollow, NoML"}, "noml"),
        ({"X_Robots_Tag": "img2dataset: noml"}, "noml"),
        ({"X_Robots_Tag": "otherbot: noml"}, None),
        ({"X_Robots_Tag": "nofollow"}, None),
        ({"tdm_reservation": "1", "tdm_policy": "https://a.example/policy"}, "tdm_reservation"),
        ({"TDM_Reservation": " 1 "}, "tdm_reservation"),
        ({"tdm_reservation": "0"}, None),
    ],
)
def test_headers(site: Site, headers: dict[str, str], reason: str | None) -> None:
    site.answers["/a.jpg"] = send(**headers)  # type: ignore[arg-type]
    assert site.fetch("/a.jpg") == reason
    assert site.fetch("/a.jpg", site.opener(headers=False)) is None


@pytest.mark.parametrize("url", ["http://user:pass@{host}/a.jpg", "http://[::1/a.jpg", "http:///a.jpg"])
def test_urls_that_are_refused_anyway_ask_nobody(site: Site, url: str) -> None:
    with pytest.raises((FetchError, ValueError, urllib.error.URLError)) as caught:
        site.opener().open(url.format(host=site.origin.removeprefix("http://")), timeout=3)
    assert failure_reason(str(caught.value)) == "invalid_url" and not site.requests
