"""Writes results of `tests/gpu/check.py` into docs/performance.md, between two marker comments.

    python tests/gpu/fill_performance.py build/gpu/part1.json build/gpu/part2.json

Results of a rehearsal on the CPU, of `--quick` and of parts that were killed are refused.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[2] / "docs" / "performance.md"
BEGIN, END = "<!-- card: begin -->", "<!-- card: end -->"
COLUMNS: Mapping[str, Sequence[tuple[str, str, str]]] = {
    "speed": (
        ("images/s", "images/s", "{:,.0f}"),
        ("MFU", "share of peak FLOP/s", "{:.1%}"),
        ("step ms", "step, ms", "{:.1f}"),
        ("kernels ms", "kernels, ms", "{:.1f}"),
        ("host ms", "host, ms", "{:.1f}"),
        ("memory GiB", "memory, GiB", "{:.1f}"),
    ),
    "evaluation": (
        ("images/s", "images/s", "{:.1f}"),
        ("windows ms", "windows, ms an image", "{:.1f}"),
        ("label map ms", "label map, ms an image", "{:.1f}"),
    ),
}
"""Of a table: key of the row's values, head of the column, format."""
TITLES = {
    "speed": "training step",
    "Hugging Face": "Hugging Face's GroupViT with the same losses",
    "evaluation": "evaluation, `paper` protocol",
}


def section(parts: Sequence[Mapping[str, Any]]) -> str:
    """The text between the markers. ValueError if the parts are not whole results of one card."""
    for part in parts:
        _check(part)
    about = parts[0]["about"]
    if any(part["about"]["card"] != about["card"] or part["about"]["torch"] != about["torch"] for part in parts):
        raise ValueError("the parts are of different cards or versions of torch: give those of one machine")
    rows = [row for part in parts for row in part["rows"]]
    best = _value(rows, "where am I", "matrix product in bfloat16", "TFLOP/s")
    product = f", {best:.0f} TFLOP/s in an 8192³ bfloat16 product" if best is not None else ""
    lines = [
        f"Measured on one {about['card']} (driver {about['driver'] or 'unknown'}, torch {about['torch']}{product})",
        f"with {about['cores']} CPU cores on {about['date']}, at commit {about['commit']}, by `make test-gpu`.",
        "The texts have different lengths in each batch. The first steps are not part of a rate.",
        "",
        *_table(rows, "speed", COLUMNS["speed"]),
        *_table(rows, "Hugging Face", COLUMNS["speed"]),
        *_table(rows, "evaluation", COLUMNS["evaluation"]),
        *_sentences(rows),
    ]
    return "\n".join(lines).rstrip() + "\n"


def filled(page: str, text: str) -> str:
    """The page with the text between its markers. ValueError if it does not have each marker once, in order."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise ValueError(f"the page must have {BEGIN} and then {END}, each once")
    return f"{before}{BEGIN}\n\n{text}\n{END}{after}"


def _check(part: Mapping[str, Any]) -> None:
    about, name = part["about"], f"part {part['part']}"
    if about["driver"] is None and about["capability"] is None:
        raise ValueError(f"{name} is of a rehearsal on the CPU: run it on a card")
    if about["quick"]:
        raise ValueError(f"{name} is of --quick: run it without")
    if not part["complete"]:
        raise ValueError(f"{name} was killed before its end: run it again")


def _table(rows: Iterable[Mapping[str, Any]], of_section: str, columns: Sequence[tuple[str, str, str]]) -> list[str]:
    measured = [row for row in rows if row["section"] == of_section and columns[0][0] in row["values"]]
    if not measured:
        return []
    shown = [column for column in columns if any(column[0] in row["values"] for row in measured)]
    lines = [f"| {TITLES[of_section]} | {' | '.join(head for _, head, _ in shown)} |", "|---" * (1 + len(shown)) + "|"]
    for row in measured:
        cells = [_cell(row["values"].get(key), form) for key, _, form in shown]
        lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    return [*lines, ""]


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _sentences(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for each result that is not in a table."""
    lines = []
    for row in rows:
        if row["result"] == "skipped":
            lines.append(f"- {row['section']}, {row['name']}: {row['why']}.")
        elif row["result"] == "failed":
            lines.append(f"- **Failed**: {row['section']}, {row['name']}: {_values(row)}.")
        elif row["section"] not in TITLES and row["values"]:
            lines.append(f"- {row['section']}, {row['name']}: {_values(row)}.")
    return lines


def _values(row: Mapping[str, Any]) -> str:
    """The values; of an error and its bound, only these."""
    values = row["values"]
    if "bound" in values:
        values = {key: values[key] for key in ("error", "bound")}
    shown = [f"{key} {_number(value)}".strip() for key, value in values.items() if value is not None]
    return ", ".join([*shown, *([row["why"]] if row["why"] else [])])


def _number(value: float | str) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value)


def _value(rows: Iterable[Mapping[str, Any]], of_section: str, name: str, key: str) -> float | None:
    return next((row["values"].get(key) for row in rows if (row["section"], row["name"]) == (of_section, name)), None)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path, metavar="PART.json")
    parser.add_argument("--page", type=Path, default=PAGE, help="default: docs/performance.md")
    arguments = parser.parse_args()
    try:
        text = section([json.loads(path.read_text()) for path in arguments.results])
        arguments.page.write_text(filled(arguments.page.read_text(), text))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
