"""Tables of text: aligned for the terminal, as Markdown, as CSV."""

import csv
import io
import math
from collections.abc import Sequence


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines: the first column to the left, the others to the right."""
    widths = [max(len(line[column]) for line in [header, *rows]) for column in range(len(header))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in [header, ["-" * width for width in widths], *rows]
    ]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same alignment in Markdown."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped)


def csv_text(lines: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def number(value: float | None) -> str:
    """Two decimals; `-` for what is not known."""
    return "-" if value is None or math.isnan(value) else f"{value:.2f}"


def count_of(count: int, whole: int | None) -> str:
    """`40 of 1,449`; where that is all, or there is no whole to speak of, the count alone."""
    return f"{count:,}" if whole in (None, count) else f"{count:,} of {whole:,}"
