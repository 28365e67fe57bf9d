"""The mix of captions by their origin: `original:0.5 llava:0.5`."""

import math
from collections.abc import Iterable, Sequence


def parse_caption_mix(texts: Sequence[str] | None) -> dict[str, float] | None:
    """Parses `NAME:WEIGHT` into weights by name; None stays None. Raises ValueError, in one line, for the first that is
    invalid.
    """
    if texts is None:
        return None
    mix: dict[str, float] = {}
    for text in texts:
        name, colon, given = text.rpartition(":")
        try:
            weight = float(given)
        except ValueError:
            weight = math.nan
        if not colon or not name or not (math.isfinite(weight) and weight > 0):
            raise ValueError(
                f"data.caption_mix={text!r}: give NAME:WEIGHT with a weight above 0, e.g. original:0.5 llava:0.5; "
                "leave a name out to not use its captions"
            )
        if name in mix:
            raise ValueError(f"data.caption_mix={text!r}: {name} is given twice; give it once")
        mix[name] = weight
    if not mix:
        raise ValueError("data.caption_mix is empty: give e.g. original:0.5 llava:0.5, or leave it out")
    return mix


def check_caption_mix(texts: Sequence[str] | None, known: Iterable[str]) -> None:
    """Raises ValueError for a name that is none of the `known` origins of the data sets."""
    known = sorted(set(known))
    for name in parse_caption_mix(texts) or ():
        if name not in known:
            raise ValueError(
                f"data.caption_mix: no data set has captions of {name!r}; there are {', '.join(known)}; `groupvit "
                "curate --captions-from` adds others"
            )
