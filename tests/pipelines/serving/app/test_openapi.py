"""The OpenAPI document: valid, and true of what the server answers."""

import asyncio
from typing import Any

import httpx
import jsonschema
from fastapi.openapi.models import OpenAPI
from starlette.routing import Route

from groupvit.config import SegmentationConfig
from groupvit.segmenter import Segmenter
from groupvit.tokenizer import Tokenizer
from pipelines.serving.app.answers import Answer, Question, answer
from pipelines.serving.app.openapi import OPERATIONS, document
from pipelines.serving.app.server import PageSettings, pages_app
from tests.support.image_files import encoded
from tests.support.running_app import blocks
from tests.support.small_model import distinct_model

MODEL = {
    "checkpoint": "runs/demo",
    "license": None,
    "stages": [8, 4],
    "protocol": "model",
    "background": True,
    "threshold": 0.95,
    "words": ["dog"],
    "examples": [],
    "max_upload_megabytes": 2,
}
SETTINGS = PageSettings(model=MODEL, examples=(), allowed_hosts=("*",), max_image_bytes=10**6, max_at_once=1)


async def ask(question: Question) -> Answer:
    config = SegmentationConfig(short_side=64, window=None, background_threshold=0.12)
    return answer(Segmenter(distinct_model(), config, Tokenizer()), question)


def send(method: str, path: str, **content: Any) -> httpx.Response:
    async def one() -> httpx.Response:
        transport = httpx.ASGITransport(app=pages_app(SETTINGS, ask))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **content)

    return asyncio.run(one())


def schema_of(path: str, method: str, status: str = "200") -> dict[str, Any]:
    [content] = document()["paths"][path][method]["responses"][status]["content"].values()
    return content["schema"] | {"components": document()["components"]}


def test_the_document_is_valid_and_served() -> None:
    OpenAPI.model_validate(document())
    for schema in document()["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    assert send("GET", "/openapi.json").json() == document()


def test_it_has_every_address_below_api() -> None:
    routes = [route for route in pages_app(SETTINGS, ask).routes if isinstance(route, Route)]
    assert {route.path for route in routes if route.path.startswith("/api")} == {each.path for each in OPERATIONS}
    assert len(document()["paths"]) == len(OPERATIONS)


def test_answers_are_as_it_says() -> None:
    form = {"files": {"image": ("photo.png", encoded(blocks(), "PNG"))}, "data": {"words": "dog, grass"}}
    jsonschema.validate(send("GET", "/api/model").json(), schema_of("/api/model", "get"))
    segmented = send("POST", "/api/segment", **form).json()
    jsonschema.validate(segmented, schema_of("/api/segment", "post"))
    labelled = send("POST", "/api/labels", **form)
    assert labelled.headers["content-type"] == "image/png"
    assert labelled.headers["groupvit-names"] == '["background", "dog", "grass"]'
    refused = send("POST", "/api/labels", files=form["files"], data={"words": ""})
    assert refused.status_code == 400
    jsonschema.validate(refused.json(), schema_of("/api/labels", "post", "400"))


def test_labels_of_very_large_images_are_refused() -> None:
    large = encoded(blocks().resize((8192, 4096)), "PNG")
    refused = asyncio.run(ask(Question(image=large, words=("dog",), labels_only=True)))
    assert refused.status == 400 and b"max_pixels" in refused.body
