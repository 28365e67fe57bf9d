"""Which mistakes come nearest to a number that someone else got."""

from collections.abc import Mapping
from typing import Any

PROTOCOL = "none of these mistakes"
SAME_POINTS = 0.1
"""Numbers of the same images that differ by less are taken to be equal: libraries round differently, and numbers are
given with one decimal."""
NUM_SHOWN = 3
"""Number of mistakes that are named where none fits."""


def nearest(
    miou: float,
    costs: Mapping[str, tuple[float, float]],
    *,
    found: float,
    expected: float | None,
    num_images: int,
    num_all: int,
) -> dict[str, Any]:
    """Compares a number with the protocol's and with each mistake's. All numbers are mIoU in percent, or points of it.

    Args:
        miou: mIoU of the protocol on the sample.
        costs: Cost of each mistake on the sample, and its standard error.
        found: The number that someone else got.
        expected: The right number on the images of `found`. Then the costs are compared, which carry over to other
            images but for their standard errors. None: `found` is compared with the numbers of the sample itself.
        num_images: Number of images in the sample.
        num_all: Number of images that the sample was drawn from.

    Returns:
        JSON-safe: `nearest`, all candidates with the nearest first, each with its distance in points and whether it
        fits; and `says`, the lines for people.
    """
    right = miou if expected is None else expected
    lost = right - found
    candidates = [
        {
            "name": name,
            "distance": abs(cost - lost),
            "fits": abs(cost - lost) <= SAME_POINTS + (0.0 if expected is None else 2 * standard_error),
        }
        for name, (cost, standard_error) in {PROTOCOL: (0.0, 0.0), **costs}.items()
    ]
    candidates.sort(key=lambda candidate: candidate["distance"])
    says = ["", _verdict(found, right, candidates)]
    if expected is None and num_images < num_all:
        says.append(
            f"This takes {found} to be of the same {num_images} images. If it is of others, like all {num_all:,}, the "
            f"right number is not {miou:.2f} there: give it with --explain-expected, or evaluate all with "
            "--explain-images None"
        )
    return {"found": found, "expected": expected, "lost": lost, "nearest": candidates, "says": says}


def _verdict(found: float, right: float, candidates: list[dict[str, Any]]) -> str:
    fitting = [candidate["name"] for candidate in candidates if candidate["fits"]]
    shown = ", ".join(f"{each['name']} ({each['distance']:.2f} off)" for each in candidates[:NUM_SHOWN])
    head = f"{found} is {abs(right - found):.2f} points {'above' if found > right else 'below'} the right {right:.2f}."
    if not fitting:
        return (
            f"{head} No mistake of the list fits alone, the nearest are {shown}: look for two at once, or for other "
            "weights or images"
        )
    if fitting == [PROTOCOL]:
        return f"{head} It is the protocol's number: {PROTOCOL} fits"
    if len(fitting) == 1:
        return f"{head} The mistake that fits: {fitting[0]} ({candidates[0]['distance']:.2f} off)"
    return f"{head} These fit, and the number cannot tell them apart, nearest first: {', '.join(fitting)}"
