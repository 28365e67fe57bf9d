"""Reads the form that a visitor sends: an image and words. Limits on its size and time apply while it is read."""

import asyncio

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.types import Message, Receive

from groupvit.words import parse_words
from pipelines.serving.app.answers import Question
from pipelines.serving.app.config import MEGABYTE
from pipelines.serving.app.examples import Example

READING_SECONDS = 60
"""Largest number of seconds that an upload may take, so that slow uploads cannot block other visitors."""
FORM_OVERHEAD = 200_000  # bytes of the form beside the image: words, names, boundaries
MAX_FIELDS = 8


class RefusedError(Exception):
    """The request is not accepted. Holds an HTTP status, and the reason in one line."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


async def read_question(
    request: Request, examples: tuple[Example, ...], max_image_bytes: int, *, labels_only: bool
) -> Question:
    """Reads the question in a `multipart/form-data` request. Raises `RefusedError` if it is invalid or too large."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise RefusedError(415, "the request is not a form: send multipart/form-data with an image and words")
    limit = max_image_bytes + FORM_OVERHEAD
    _check_length(request, limit, max_image_bytes)
    bounded = Request(request.scope, _bounded(request, limit, max_image_bytes))
    try:
        async with (
            asyncio.timeout(READING_SECONDS),
            bounded.form(max_files=1, max_fields=MAX_FIELDS, max_part_size=FORM_OVERHEAD) as form,
        ):
            image = form.get("image")
            content = await image.read() if isinstance(image, UploadFile) else b""
            fields = {key: value for key, value in form.items() if isinstance(value, str)}
    except (MultiPartException, HTTPException) as error:
        detail = error.message if isinstance(error, MultiPartException) else error.detail
        raise RefusedError(400, f"the form cannot be read: {detail}") from None
    except TimeoutError:
        raise RefusedError(408, f"the upload took more than {READING_SECONDS} s: shrink the image") from None
    if len(content) > max_image_bytes:
        raise _too_large(max_image_bytes)
    if not content:
        content = _example(fields.get("example"), examples)
    return Question(
        image=content,
        words=tuple(parse_words(fields.get("words", ""))),
        background=_switch(fields.get("background", "1")),
        background_threshold=_threshold(fields.get("threshold", "")),
        labels_only=labels_only,
    )


def _check_length(request: Request, limit: int, max_image_bytes: int) -> None:
    """Checks the length before a byte is read. It is required, because a proxy would buffer an endless body for us."""
    length = request.headers.get("content-length", "")
    if not length.isdecimal():
        raise RefusedError(411, "the request does not say how long it is: send a Content-Length")
    if len(length) > 12 or int(length) > limit:
        raise _too_large(max_image_bytes)


def _bounded(request: Request, limit: int, max_image_bytes: int) -> Receive:
    received = 0

    async def receive() -> Message:
        nonlocal received
        message = await request.receive()
        received += len(message.get("body", b""))
        if received > limit:
            raise _too_large(max_image_bytes)
        return message

    return receive


def _too_large(max_image_bytes: int) -> RefusedError:
    return RefusedError(413, f"image has more than {max_image_bytes // MEGABYTE} MB: shrink it")


def _example(number: str | None, examples: tuple[Example, ...]) -> bytes:
    if number is None:
        raise RefusedError(400, "image is missing: choose a picture")
    if not (number.isascii() and number.isdigit() and len(number) < 6 and int(number) < len(examples)):
        raise RefusedError(400, f"example {number[:20]!r} does not exist: choose a picture")
    return examples[int(number)].jpeg


def _switch(value: str) -> bool:
    if value not in ("0", "1"):
        raise RefusedError(400, f"background={value[:20]!r}: give 1 or 0")
    return value == "1"


def _threshold(value: str) -> float | None:
    if not value:
        return None
    try:
        return float(value)
    except ValueError:
        raise RefusedError(400, f"threshold={value[:20]!r} is not a number: give one from 0 to 1") from None
