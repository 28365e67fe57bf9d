"""Bounds of an upload that the real server would need a minute to show."""

import asyncio
from collections.abc import Iterable, Iterator

import pytest
from starlette.requests import Request
from starlette.types import Message

from pipelines.serving.app import uploads


def request_of(body: Iterable[bytes], length: int, pause: float) -> Request:
    """A form whose parts come one by one, with pauses."""
    parts = iter(body)

    async def receive() -> Message:
        await asyncio.sleep(pause)
        part = next(parts, b"")
        return {"type": "http.request", "body": part, "more_body": bool(part)}

    headers = [(b"content-type", b"multipart/form-data; boundary=b"), (b"content-length", str(length).encode())]
    return Request({"type": "http", "method": "POST", "headers": headers}, receive)


HEAD = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'


def test_slow_uploads_come_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "READING_SECONDS", 0.3)
    slow = request_of([HEAD, *[b"x"] * 1000], length=2000, pause=0.02)
    with pytest.raises(uploads.RefusedError, match="took more than") as refused:
        asyncio.run(uploads.read_question(slow, (), 1_000_000, labels_only=False))
    assert refused.value.status == 408


def test_what_is_read_is_counted_whatever_the_length_said() -> None:
    taken = 0

    def parts() -> Iterator[bytes]:
        nonlocal taken
        yield HEAD
        while True:
            taken += 100_000
            yield b"x" * 100_000

    request = request_of(parts(), length=1000, pause=0)
    with pytest.raises(uploads.RefusedError, match="more than 1 MB") as refused:
        asyncio.run(uploads.read_question(request, (), 1_000_000, labels_only=False))
    assert refused.value.status == 413 and taken < 1_500_000


def test_a_form_is_read() -> None:
    field = b'\r\n--b\r\nContent-Disposition: form-data; name="words"\r\n\r\ndog, hot  dog\r\n--b--\r\n'
    body = [HEAD, b"\x89PNG\r\n", b"\x00\xff", field]
    question = asyncio.run(
        uploads.read_question(request_of(body, sum(map(len, body)), 0), (), 1_000_000, labels_only=False)
    )
    assert question.image == b"\x89PNG\r\n\x00\xff" and question.words == ("dog", "hot dog")
    assert question.background and question.background_threshold is None
