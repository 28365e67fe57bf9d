"""Tables of text: aligned for the terminal, as Markdown, as CSV."""

import csv
import io
import math
from collections.abc import Sequence


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table. The first column is left-aligned, the others are right-aligned."""
    widths = [max(len(line[column]) for line in [header, *rows]) for column in range(len(header))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in [header, ["-" * width for width in widths], *rows]
    ]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table with the same alignment."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped)


def csv_text(lines: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def number(value: float | None) -> str:
    """Format a number with two decimals; `-` if it is unknown."""
    return "-" if value is None or math.isnan(value) else f"{value:.2f}"


def count_of(count: int, whole: int | None) -> str:
    """Format as `40 of 1,449`. If `count` is the whole, or `whole` is None, return the count alone."""
    return f"{count:,}" if whole in (None, count) else f"{count:,} of {whole:,}"
