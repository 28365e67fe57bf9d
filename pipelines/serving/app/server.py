"""The server of the page: a model that answers questions, and the pages in front of it, both on Ray Serve.

    GET  /                    the page, with /page.css, /page.js and so on
    GET  /openapi.json        the addresses below /api, their questions and answers, for programs and people
    POST /api/labels          the label of each pixel, in the size of the image, as `groupvit segment` gives it
    POST /api/segment         what the page shows of an image
    GET  /api/model           the model and its protocol
    GET  /api/examples/N      the N-th example

`pipelines.serving.app.openapi` has the table of the interface.

The answer to an invalid request is 4xx, and 503 if the server is busy, with JSON {"error": one line}. The server does
not store what visitors send.
"""

import dataclasses
import mimetypes
from collections.abc import Callable
from importlib import resources
from typing import Any

import torch
from ray import serve
from ray.serve.exceptions import BackPressureError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from groupvit.checkpoint import load, load_state
from groupvit.config import PrecisionChoice
from groupvit.protocols import protocol_of
from groupvit.segmenter import Segmenter
from groupvit.tokenizer import Tokenizer
from pipelines.runs.checkpoints import local_checkpoint
from pipelines.serving.app.answers import Answer, Question, answer
from pipelines.serving.app.examples import Example
from pipelines.serving.app.openapi import OPERATIONS, document
from pipelines.serving.app.uploads import RefusedError, read_question

APP_NAME = "groupvit"
MODEL_NAME = "model"
MAX_WAITING = 4
"""Largest number of questions that wait for each copy of the model. Further ones get the status 503."""
PAGE_FILES = ("page.html", "page.css", "page.js", "result.js", "picture.js", "words.js", "address.js", "icon.svg")

_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
_BUSY = Answer.error(503, "too many pictures at once: try again in a few seconds")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PageSettings:
    """Settings of the page's server."""

    model: dict[str, Any]
    """The JSON of /api/model."""
    examples: tuple[Example, ...]
    allowed_hosts: tuple[str, ...]
    """Accepted Host headers. Others are refused, to stop sites whose name is made to resolve to this machine."""
    max_image_bytes: int
    max_at_once: int
    """Largest number of questions that are being read or answered."""


class Model:
    """One copy of the model. Serve gives it one question at a time."""

    def __init__(self, checkpoint: str, protocol: Any, precision: PrecisionChoice, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        with local_checkpoint(checkpoint) as folder:
            model = load(folder)
            segmentation = protocol_of(protocol, model, load_state(folder))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._segmenter = Segmenter(model.to(device), segmentation, Tokenizer(), precision=precision)

    def answer(self, question: Question) -> Answer:
        return answer(self._segmenter, question)


class SafeHeaders:
    """ASGI middleware that adds security headers for the browser to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", ()), *added]}
            await send(message)

        await self._app(scope, receive, send_with_headers)


def application(
    settings: PageSettings,
    *,
    checkpoint: str,
    protocol: str,
    precision: PrecisionChoice,
    num_replicas: int,
    gpus: float,
    num_threads: int,
) -> serve.Application:
    """Returns the Serve application: the pages in front of `num_replicas` copies of the model."""
    model = serve.deployment(
        Model,
        name=MODEL_NAME,
        num_replicas=num_replicas,
        max_ongoing_requests=1,
        max_queued_requests=MAX_WAITING * num_replicas,
        ray_actor_options={"num_cpus": 1, "num_gpus": gpus},
        graceful_shutdown_timeout_s=2,
    )
    pages = serve.deployment(
        serve.ingress(_pages(settings))(),
        name="pages",
        max_ongoing_requests=200,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=2,
    )
    return pages.bind(model.bind(checkpoint, protocol, precision, num_threads))


def _pages(settings: PageSettings) -> Callable[[], ASGIApp]:
    """Returns a builder, because Serve creates the ASGI application in the process where it runs."""

    def build() -> ASGIApp:
        return pages_app(settings, serve.get_deployment_handle(MODEL_NAME, app_name=APP_NAME).answer.remote)

    return build


def pages_app(settings: PageSettings, ask: Callable[[Question], Any]) -> Starlette:
    """Returns the pages as an ASGI application. `ask` returns an awaitable `Answer`."""
    under_way = 0

    async def respond(request: Request, *, labels_only: bool) -> Response:
        nonlocal under_way
        if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return _response(Answer.error(403, "pages elsewhere may not ask"))
        if under_way >= settings.max_at_once:
            return _response(_BUSY)
        under_way += 1
        try:
            limit = settings.max_image_bytes
            question = await read_question(request, settings.examples, limit, labels_only=labels_only)
            return _response(await ask(question))
        except RefusedError as error:
            return _response(Answer.error(error.status, str(error)))
        except BackPressureError:
            return _response(_BUSY)
        finally:
            under_way -= 1

    async def labels(request: Request) -> Response:
        return await respond(request, labels_only=True)

    async def segment(request: Request) -> Response:
        return await respond(request, labels_only=False)

    async def model(request: Request) -> Response:
        return _response(Answer.of(settings.model))

    async def example(request: Request) -> Response:
        number = request.path_params["number"]
        if number >= len(settings.examples):
            raise HTTPException(404)
        return Response(settings.examples[number].jpeg, media_type="image/jpeg", headers={"cache-control": "no-cache"})

    async def failed(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        reason = error.detail if isinstance(error, HTTPException) else "something went wrong here: see the logs of Ray"
        return _response(Answer.error(status, reason))

    async def openapi(request: Request) -> Response:
        return _response(Answer.of(document()))

    handlers = {"labels": labels, "segment": segment, "model": model, "example": example}
    routes = [Route(each.path, handlers[each.name], methods=[each.method]) for each in OPERATIONS]
    routes += [Route("/openapi.json", openapi)]
    routes += [Route("/" if name == "page.html" else f"/{name}", _file(name)) for name in PAGE_FILES]
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=list(settings.allowed_hosts), www_redirect=False)
    failures: dict[Any, Any] = {HTTPException: failed, Exception: failed}
    return Starlette(routes=routes, middleware=[Middleware(SafeHeaders), hosts], exception_handlers=failures)


def _file(name: str) -> Callable[[Request], Any]:
    content = resources.files("pipelines.serving.app").joinpath("page", name).read_bytes()
    media_type = "text/javascript" if name.endswith(".js") else mimetypes.guess_type(name)[0]

    async def send_file(request: Request) -> Response:
        return Response(content, media_type=media_type, headers={"cache-control": "no-cache"})

    return send_file


def _response(given: Answer) -> Response:
    headers = {"cache-control": "no-store"} | ({"retry-after": "5"} if given.status == 503 else {})
    return Response(given.body, given.status, headers | given.headers, given.media_type)
