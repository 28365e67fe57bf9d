"""Shows a data set as one self-contained HTML page: no script, no other file.

Captions, nouns, URLs and names come from the web. Every text goes through `_escape`, and no URL becomes a link.
"""

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipelines.dataset.card import Chart, DatasetCard, share, shortened
from pipelines.dataset.format import ORIGINAL
from pipelines.provenance import redact

_CHART_WIDTH, _LABEL_WIDTH, _BAR_WIDTH, _BAR_HEIGHT = 340, 112, 88, 20  # pixels; a phone shows 360 in total
_LONGEST_LABEL = 20  # characters
_LONGEST_CAPTION, _LONGEST_LINE = 500, 200  # characters; the page has to stay readable with any text from the web

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #20242c; --faint: #5d6470; --line: #d6d8dc; --bar: #3c69d7 }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16181d; --ink: #e6e8ec; --faint: #a2a8b3; --line: #3a3f49; --bar: #7ea2ff }
}
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1rem; max-width: 78rem; background: var(--paper); color: var(--ink);
  font: 15px/1.45 system-ui, sans-serif; overflow-wrap: anywhere }
h1 { font-size: 1.5rem; margin: 0 0 1rem } h2 { font-size: 1.2rem; margin: 2rem 0 .75rem }
table { border-collapse: collapse; max-width: 100% }
caption { text-align: left; color: var(--faint); padding-bottom: .25rem }
th, td { text-align: left; vertical-align: top; padding: .2rem 1rem .2rem 0; border-bottom: 1px solid var(--line) }
th { font-weight: 600 } th[scope=row] { min-width: 7rem } .number { text-align: right; white-space: nowrap }
.charts { display: flex; flex-wrap: wrap; gap: 1.5rem 2rem; margin-bottom: 1rem }
.charts figure { margin: 0; width: 340px; max-width: 100% }
svg { max-width: 100%; height: auto; font: 12px system-ui, sans-serif; fill: var(--ink) }
svg rect { fill: var(--bar) } svg .count { fill: var(--faint) }
figcaption { font-weight: 600; margin-bottom: .25rem }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)); gap: 1.25rem 1rem; padding: 0;
  list-style: none }
.samples img, .samples .broken { display: block; width: 100%; max-width: 160px; aspect-ratio: 1; object-fit: contain;
  margin-bottom: .4rem; background: color-mix(in srgb, var(--line) 40%, transparent) }
.samples .broken { display: grid; place-items: center; color: var(--faint) }
.samples p { margin: 0 0 .2rem; unicode-bidi: isolate } .samples .faint { color: var(--faint); font-size: .8rem }
"""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What the page shows of one sample."""

    thumbnail: bytes | None
    """JPEG, or None if the image cannot be decoded."""
    captions: Sequence[str]
    nouns: Sequence[Sequence[str]] | None
    """Nouns of each caption. None: not shown."""
    width: int
    height: int
    source: str | None
    url: str | None
    origins: Sequence[str] | None = None
    """Origin of each caption. None: all are original ones."""


def dataset_page(card: DatasetCard, samples: Sequence[Sample]) -> str:
    """Renders the page, with `samples` in order."""
    name = _escape(card.info.uri)
    parts = [f"<h1>Data set {name}</h1>", table("The data set", card.facts())]
    if card.drops:
        parts += ["<h2>Dropped</h2>", f'<div class="charts">{_chart(card.dropped())}</div>', _drops_table(card.drops)]
    parts += ["<h2>Samples in numbers</h2>", f'<div class="charts">{"".join(map(_chart, card.charts()))}</div>']
    if samples:
        parts += [f"<h2>{len(samples):,} samples, evenly spaced</h2>", gallery(samples)]
    if card.provenance:
        parts += ["<h2>Where it comes from</h2>", table("From dataset.json", card.provenance)]
    return document(f"Data set {card.info.uri}", parts)


def gallery(samples: Sequence[Sample]) -> str:
    """Renders samples side by side, in order."""
    return f'<ul class="samples">{"".join(map(_sample, samples))}</ul>'


def document(title: str, parts: Sequence[str]) -> str:
    """Renders a page of these parts, which are HTML."""
    body = "\n".join(parts)
    # If a text is not escaped by mistake, the policy keeps it from running or loading anything.
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def _escape(text: str) -> str:
    return html.escape("".join(c if c.isprintable() else " " for c in text))


def table(caption: str, rows: Mapping[str, str]) -> str:
    """Renders names and texts."""
    body = "".join(
        f'<tr><th scope="row">{_escape(name)}</th><td>{_escape(text)}</td></tr>' for name, text in rows.items()
    )
    return f"<table><caption>{_escape(caption)}</caption>{body}</table>"


def _drops_table(drops: Mapping[str, Mapping[str, int]]) -> str:
    head = '<th scope="col">source</th><th scope="col">reason</th><th scope="col" class="number">rows</th>'
    body = "".join(
        f'<tr><td>{_escape(source)}</td><td>{_escape(reason)}</td><td class="number">{count:,}</td></tr>'
        for source, reasons in drops.items()
        for reason, count in sorted(reasons.items(), key=lambda pair: -pair[1])
    )
    return f"<table><caption>Dropped, by source and reason</caption><tr>{head}</tr>{body}</table>"


def _chart(chart: Chart) -> str:
    """Draws horizontal bars as SVG, so that texts have the same size on every screen."""
    most = max((count for _, count in chart.bars), default=0)
    bars: list[str] = []
    for index, (label, count) in enumerate(chart.bars):
        top = index * _BAR_HEIGHT
        length = _BAR_WIDTH * count / max(most, 1)
        shown = shortened(label, _LONGEST_LABEL)
        # Squeeze labels that may be too wide. UTF-8 takes more bytes for wider characters.
        squeezed = (
            f' textLength="{_LABEL_WIDTH - 8}" lengthAdjust="spacingAndGlyphs"' if len(shown.encode()) > 15 else ""
        )
        bars.append(
            f'<text x="{_LABEL_WIDTH - 6}" y="{top + 14}" text-anchor="end"{squeezed}>{_escape(shown)}</text>'
            f'<rect x="{_LABEL_WIDTH}" y="{top + 3}" width="{length:.1f}" height="{_BAR_HEIGHT - 6}"/>'
            f'<text class="count" x="{_LABEL_WIDTH + length + 5:.1f}" y="{top + 14}">{share(count, chart.total)}</text>'
        )
    spoken = f"{chart.title}: " + "; ".join(f"{label}: {share(count, chart.total)}" for label, count in chart.bars)
    height = max(1, len(chart.bars)) * _BAR_HEIGHT
    return (
        f'<figure><figcaption>{_escape(chart.title)}</figcaption><svg role="img" aria-label="{_escape(spoken)}" '
        f'width="{_CHART_WIDTH}" height="{height}" viewBox="0 0 {_CHART_WIDTH} {height}">{"".join(bars)}</svg></figure>'
    )


def _sample(sample: Sample) -> str:
    captions = [_escape(shortened(caption, _LONGEST_CAPTION)) for caption in sample.captions]
    if sample.thumbnail is None:
        picture = '<div class="broken">cannot be decoded</div>'
    else:
        data = base64.b64encode(sample.thumbnail).decode()
        picture = f'<img loading="lazy" alt="{captions[0]}" src="data:image/jpeg;base64,{data}">'
    origin = f"{sample.width}×{sample.height}" + (f", {sample.source}" if sample.source else "")
    faint = [origin, *([redact(sample.url)] if sample.url else [])]
    if sample.nouns is not None:
        nouns = dict.fromkeys(noun for of_caption in sample.nouns for noun in of_caption)
        faint.insert(0, f"nouns: {', '.join(nouns) or 'none'}")
    lines = "".join(f'<p class="faint" dir="auto">{_escape(shortened(line, _LONGEST_LINE))}</p>' for line in faint)
    origins = sample.origins or [ORIGINAL] * len(captions)
    said = "".join(_said(caption, origin) for caption, origin in zip(captions, origins, strict=False))
    return f"<li>{picture}{said}{lines}</li>"


def _said(caption: str, origin: str) -> str:
    faint = "" if origin == ORIGINAL else f' <span class="faint">{_escape(shortened(origin, _LONGEST_LABEL))}</span>'
    return f'<p dir="auto">{caption}{faint}</p>'
