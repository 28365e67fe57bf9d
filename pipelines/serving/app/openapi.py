"""The HTTP interface as a table, of which the server makes its routes, and the OpenAPI document at /openapi.json."""

import dataclasses
from importlib.metadata import version
from typing import Any, Literal

TEXT: dict[str, Any] = {"type": "string"}
COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
SHARE: dict[str, Any] = {"type": "number", "minimum": 0, "maximum": 1}
DATA_URL = TEXT | {"description": "a PNG as a data URL"}
COLOURS = {"type": "array", "items": {"type": "array", "items": COUNT}, "description": "RGB of each value"}


def _list(of: dict[str, Any], description: str) -> dict[str, Any]:
    return {"type": "array", "items": of, "description": description}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


QUESTION: dict[str, Any] = {
    "type": "object",
    "properties": {
        "image": TEXT
        | {"format": "binary", "description": "a JPEG, PNG, WebP, GIF or BMP file; turned upright as its EXIF says"},
        "example": TEXT | {"description": "number of an example, in place of an image"},
        "words": TEXT | {"description": "what to look for, with commas between the words"},
        "background": {"enum": ["1", "0"], "default": "1", "description": "0: every pixel gets one of the words"},
        "threshold": TEXT
        | {"description": "0 to 1: a pixel whose best word scores less is background; left out: as the model says"},
    },
    "required": ["words"],
}
"""Fields of the form that `pipelines.serving.app.uploads` reads."""

SEGMENTED = _object(
    {
        "width": COUNT | {"description": "width of the maps: 1024 pixels at the longer side, less with many words"},
        "height": COUNT,
        "names": _list(TEXT, "name of each label"),
        "has_background": {"type": "boolean", "description": "whether label 0 is the background"},
        "colours": COLOURS,
        "shares": _list(SHARE, "fraction of the pixels with each label"),
        "labels": DATA_URL | {"description": "data URL of a PNG with a palette: the label of each pixel"},
        "groups": _list(
            _object({"map": DATA_URL, "colours": COLOURS}),
            "per stage: the group of each pixel as a grey PNG, 0 being the largest group, and colours",
        ),
        "affinities": _list(_list(SHARE, "one per word"), "for each group of the last stage, how much it is of a word"),
        "group_shares": _list(SHARE, "fraction of the pixels in each group of the last stage"),
        "seconds": {"type": "number", "description": "time that the answer took"},
    }
)

MODEL = _object(
    {
        "checkpoint": TEXT,
        "license": {"type": ["string", "null"], "description": "licence notice of the weights"},
        "stages": _list(COUNT, "number of groups of each stage"),
        "protocol": TEXT,
        "background": {"type": "boolean", "description": "whether the protocol has a background"},
        "threshold": {"type": ["number", "null"], "description": "the protocol's background threshold"},
        "words": _list(TEXT, "words to begin with"),
        "examples": _list(TEXT, "names of the examples"),
        "max_upload_megabytes": {"type": "number"},
    }
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operation:
    """One address of the interface."""

    path: str
    """As of Starlette, with the type of a parameter: `/api/examples/{number:int}`."""
    method: Literal["GET", "POST"]
    name: str
    """Name of the handler, and `operationId`."""
    summary: str
    media_type: str
    """Of the answer."""
    answer: dict[str, Any]
    """JSON schema of the answer."""
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    """Headers of the answer, with their descriptions."""
    errors: tuple[int, ...] = ()
    """Possible statuses of an error."""


JSON = "application/json"
BINARY = TEXT | {"format": "binary"}
REFUSALS = (400, 403, 408, 411, 413, 415, 503)
OPERATIONS = (
    Operation(
        path="/api/labels",
        method="POST",
        name="labels",
        summary="The label of each pixel, in the size of the image: the labels of `groupvit segment`",
        media_type="image/png",
        answer=BINARY | {"description": "a PNG with a palette; its values are labels"},
        headers={"groupvit-names": "name of each label, as a JSON list"},
        errors=REFUSALS,
    ),
    Operation(
        path="/api/segment",
        method="POST",
        name="segment",
        summary="What the page shows: labels, groups and affinities of the image at the size of the page",
        media_type=JSON,
        answer=SEGMENTED,
        errors=REFUSALS,
    ),
    Operation(
        path="/api/model",
        method="GET",
        name="model",
        summary="The model and its protocol",
        media_type=JSON,
        answer=MODEL,
    ),
    Operation(
        path="/api/examples/{number:int}",
        method="GET",
        name="example",
        summary="An example",
        media_type="image/jpeg",
        answer=BINARY,
        errors=(404,),
    ),
)


def document() -> dict[str, Any]:
    """Returns the OpenAPI document (version 3.1)."""
    paths: dict[str, Any] = {}
    for operation in OPERATIONS:
        answer: dict[str, Any] = {
            "description": "success",
            "content": {operation.media_type: {"schema": operation.answer}},
        }
        if operation.headers:
            answer["headers"] = {
                name: {"description": text, "schema": TEXT} for name, text in operation.headers.items()
            }
        error = {
            "description": "what is wrong, in one line",
            "content": {JSON: {"schema": {"$ref": "#/components/schemas/Error"}}},
        }
        described: dict[str, Any] = {
            "operationId": operation.name,
            "summary": operation.summary,
            "responses": {"200": answer} | {str(status): error for status in operation.errors},
        }
        if operation.method == "POST":
            schema = {"$ref": "#/components/schemas/Question"}
            described["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
        if "{number:int}" in operation.path:
            described["parameters"] = [{"name": "number", "in": "path", "required": True, "schema": COUNT}]
        paths[operation.path.replace(":int}", "}")] = {operation.method.lower(): described}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "GroupViT",
            "version": version("groupvit"),
            "description": "Segments images by words. Images are kept in memory only.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {"schemas": {"Question": QUESTION, "Error": _object({"error": TEXT})}},
    }
