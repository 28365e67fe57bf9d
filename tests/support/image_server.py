"""A web of images on 127.0.0.1, good ones and planted trouble, for tests of the way from a URL list to a data set."""

import contextlib
import dataclasses
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from tests.support.image_files import encoded, png_that_promises

PLANTED = {
    "missing": (5, "http_404"),
    "slow": (3, "timeout"),
    "trickle": (1, "timeout"),
    "truncated": (4, "truncated"),
    "html": (4, "not_an_image"),
    "endless": (2, "too_large"),
    "opt_out": (5, "opt_out"),
    "redirect_loopback": (3, "refused_address"),
    "redirect_metadata": (3, "refused_address"),
    "unavailable": (4, "http_503"),
    "robots_txt": (3, "robots_txt"),
    "noml": (2, "noml"),
    "tdm_reservation": (2, "tdm_reservation"),
    # These arrive; it is for curation to find them.
    "duplicate": (6, None),
    "near_duplicate": (6, None),
    "small": (5, None),
    "huge_header": (2, None),
    "redirect_good": (3, None),
}
"""Cases: how many of each, and the reason for which `groupvit download` fails them (None: it does not)."""

_COLOURS = ("red", "orange", "yellow", "green", "blue", "violet", "black", "white", "grey", "brown")
_NOUNS = ("dog", "cat", "boat", "bicycle", "horse", "tree", "lamp", "chair", "bridge", "house", "bird", "kite", "train")
_PLACES = ("river", "beach", "meadow", "street", "mountain", "kitchen", "garden", "station", "harbour", "forest")
_SIDES = (192, 320)  # pixels; the short side of good images is at least the first


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planted:
    """A row of the list, and what is behind its URL."""

    url: str
    caption: str
    case: str
    """`good`, or one of PLANTED."""
    reason: str | None
    """Why `groupvit download` fails it; None if it arrives."""
    original: str | None = None
    """URL of the good image of which this is a duplicate."""


class ImageServer:
    """`rows` is the table of what was planted, in the order of the list."""

    def __init__(self, port: int, num_good: int, seed: int) -> None:
        self.host = f"127.0.0.1:{port}"
        self.requests: Counter[str] = Counter()
        """By path."""
        self.available = threading.Event()
        """Set it, and what was unavailable (503) is there."""
        self.closing = threading.Event()
        self.bodies: dict[str, bytes] = {}
        rng = np.random.default_rng(seed)
        rows: list[Planted] = []
        good: list[tuple[str, Image.Image]] = []
        for index in range(num_good):
            image = draw(rng)
            kind = ("jpg", "jpg", "jpg", "png", "webp")[index % 5]
            path = f"/good/{index}.{kind}"
            self.bodies[path] = encoded(image, {"jpg": "jpeg"}.get(kind, kind), quality=92)
            good.append((path, image))
            rows.append(self._row(path, len(rows), "good", None))
        for case, (count, reason) in PLANTED.items():
            for index in range(count):
                path, original = f"/{case}/{index}.jpg", None
                if case == "duplicate":
                    original = good[index % num_good][0]
                    self.bodies[path] = self.bodies[original]
                elif case == "near_duplicate":
                    original, image = good[(20 + index) % num_good]
                    smaller = image.resize((image.width * 9 // 10, image.height * 9 // 10), Image.Resampling.LANCZOS)
                    self.bodies[path] = encoded(smaller, quality=70)
                elif case == "small":
                    self.bodies[path] = encoded(draw(rng).resize((24, 24)), quality=92)
                elif case == "huge_header":
                    self.bodies[path] = png_that_promises(60_000, 60_000)
                else:
                    self.bodies[path] = encoded(draw(rng), quality=92)
                if case == "redirect_good":
                    self.bodies[path.replace(case, "redirected")] = self.bodies[path]
                rows.append(self._row(path, len(rows), case, reason, original))
        self.rows = tuple(rows[index] for index in rng.permutation(len(rows)))

    def _row(self, path: str, number: int, case: str, reason: str | None, original: str | None = None) -> Planted:
        return Planted(
            url=f"http://{self.host}{path}",
            caption=caption(number),
            case=case,
            reason=reason,
            original=original and f"http://{self.host}{original}",
        )

    @property
    def reasons(self) -> dict[str, int]:
        """How many rows `groupvit download` fails, by reason."""
        return dict(Counter(row.reason for row in self.rows if row.reason is not None))

    def write_list(self, path: Path, rows: Sequence[Planted] | None = None) -> str:
        """The rows, by default all, as CC3M's list: caption, tab, URL, no header."""
        path.write_text("".join(f"{row.caption}\t{row.url}\n" for row in rows or self.rows))
        return str(path)

    def body(self, row: Planted) -> bytes:
        """What a row that arrives consists of."""
        return self.bodies[row.url.removeprefix(f"http://{self.host}")]


@contextlib.contextmanager
def image_server(num_good: int = 300, seed: int = 0) -> Iterator[ImageServer]:
    server = _Server(("127.0.0.1", 0), _Handler)
    site = server.site = ImageServer(server.server_port, num_good, seed)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        site.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


def draw(rng: np.random.Generator) -> Image.Image:
    """A picture unlike any other: smooth colours, some shapes, a little noise."""
    width, height = (int(side) for side in rng.integers(*_SIDES, 2))
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
    image = coarse.resize((width, height), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(image)
    for _ in range(4):
        left, top = int(rng.integers(width - 40)), int(rng.integers(height - 40))
        box = (left, top, left + int(rng.integers(20, 100)), top + int(rng.integers(20, 100)))
        colour = tuple(int(value) for value in rng.integers(0, 256, 3))
        (pen.ellipse if rng.random() < 0.5 else pen.rectangle)(box, fill=colour)
    noisy = np.asarray(image, np.int16) + rng.integers(-6, 7, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def caption(number: int) -> str:
    """Different for the first 13,000 numbers."""
    number, noun = divmod(number, len(_NOUNS))
    number, colour = divmod(number, len(_COLOURS))
    other, place = divmod(number, len(_PLACES))
    return f"a {_COLOURS[colour]} {_NOUNS[noun]} at the {_PLACES[place]} with a {_COLOURS[other % len(_COLOURS)]} bag"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256
    site: ImageServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are what is tested."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        site = self.server.site
        site.requests[self.path] += 1
        case = self.path.split("/")[1]
        body = site.bodies.get(self.path)
        if self.path == "/robots.txt":
            self._answer(b"User-agent: *\nDisallow: /robots_txt/\n", {"Content-Type": "text/plain"})
        elif body is None or case == "missing":
            self.send_error(404)
        elif case == "unavailable" and not site.available.is_set():
            self.send_error(503)
        elif case == "slow":
            site.closing.wait(60)
        elif case == "html":
            self._answer(b"<!doctype html><p>the image has moved</p>", {"Content-Type": "text/html"})
        elif case == "truncated":
            self._answer(body[: len(body) // 2], {"Content-Length": str(len(body))})
        elif case == "opt_out":
            self._answer(body, {"X-Robots-Tag": "noai, noimageai"})
        elif case == "noml":
            self._answer(body, {"X-Robots-Tag": "noml"})
        elif case == "tdm_reservation":
            self._answer(body, {"tdm-reservation": "1"})
        elif case == "redirect_loopback":
            self._answer(b"", {"Location": f"http://127.0.0.1:1{self.path}"}, status=302)
        elif case == "redirect_metadata":
            self._answer(b"", {"Location": "http://169.254.169.254/latest/meta-data/"}, status=302)
        elif case == "redirect_good":
            self._answer(b"", {"Location": self.path.replace(case, "redirected")}, status=301)
        elif case in ("endless", "trickle"):
            self._pour(b"\xff" * (1 if case == "trickle" else 1 << 16), pause=0.2 if case == "trickle" else 0)
        else:
            self._answer(body, {})

    def _answer(self, body: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in ({"Content-Type": "image/jpeg", "Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _pour(self, piece: bytes, pause: float) -> None:
        self.send_response(200)
        self.end_headers()
        while not self.server.site.closing.wait(pause):
            self.wfile.write(piece)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""
