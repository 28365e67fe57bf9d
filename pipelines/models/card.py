"""The card of an exported folder, with the licence notice beside it."""

from pathlib import Path

from groupvit.interop.model_card import CARD_FILE, LICENSE_FILE, card
from groupvit.model import GroupViT


def write_card(
    model: GroupViT,
    folder: Path,
    origin: str,
    notice: str | None,
    title: str,
    usage: str,
    *,
    hugging_face: bool = False,
) -> None:
    """Writes README.md and, if there is a notice, LICENSE. Arguments as of `groupvit.interop.model_card.card`."""
    text = card(model, title=title, origin=origin, license=notice, usage=usage, hugging_face=hugging_face)
    (folder / CARD_FILE).write_text(text, encoding="utf-8")
    if notice is not None:
        (folder / LICENSE_FILE).write_text(notice + "\n", encoding="utf-8")
