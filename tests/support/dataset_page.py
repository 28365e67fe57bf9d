"""The page of `groupvit inspect`, read as a browser would."""

import json
from html.parser import HTMLParser
from pathlib import Path

from pipelines.dataset.inspect import InspectConfig, inspect_dataset


class Page(HTMLParser):
    """The page as a browser takes it apart."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.content = path.read_text()
        self.feed(self.content)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def inspect(dataset: str, folder: Path, **flags) -> tuple[dict, Page]:
    out = folder / "page.html"
    summary = inspect_dataset(InspectConfig(dataset=dataset, out=str(out), **flags))
    json.dumps(summary)
    return summary, Page(out)
