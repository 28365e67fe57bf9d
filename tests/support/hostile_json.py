"""JSON that someone changed with ill will: other types, missing keys, deep nesting, huge numbers, paths, bytes."""

import copy
import json
import random
from typing import Any

from tests.support.fuzzing import mutated

DEEP = "[" * 100_000
"""Replaces a value in the text: no library could build it as an object."""
_PLACE_OF_DEEP = "the place of something deep"
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 10**18, 10**400, -(10**30), 0.5, float("nan"), float("inf"), 1e308),
    *(
        "",
        "1",
        "x" * 5000,
        "../../../etc/passwd",
        "/etc/passwd",
        "file:///etc/passwd",
        "s3://bucket/x",
        "a\\b",
        "\0",
        "\n",
    ),
    *("' OR 1=1 --", "{{7*7}}", "<script>", _PLACE_OF_DEEP, [], {}, [[]], {"": {}}, [None], {"1": "2"}, [0] * 1000),
]


def hostile(document: Any, rng: random.Random) -> bytes:
    """Returns the text of a changed copy."""
    changed = copy.deepcopy(document)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        changed = _changed(changed, rng)
    text = json.dumps(changed).replace(json.dumps(_PLACE_OF_DEEP), DEEP)
    content = text.encode()
    return mutated(content, rng) if rng.random() < 0.3 else content


def _changed(document: Any, rng: random.Random) -> Any:
    places = list(_places(document))
    if not places or rng.random() < 0.02:
        return rng.choice(VALUES)
    container, key = rng.choice(places)
    match rng.randrange(5):
        case 0:
            del container[key]
        case 1 if isinstance(container, dict):
            container[rng.choice(("", "x", "-1", "9" * 400, "../x", key + " "))] = container.pop(key)
        case 2 if isinstance(container[key], (dict, list)):
            container[key] = [container[key]]
        case _:
            container[key] = copy.deepcopy(rng.choice(VALUES))
    return document


def _places(value: Any) -> Any:
    """Yields (container, key) of everything inside."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])
