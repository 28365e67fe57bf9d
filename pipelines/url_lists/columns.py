"""Finds the columns of a file with the URL, the caption and optional values."""

from collections.abc import Mapping, Sequence

import pyarrow as pa

from pipelines.url_lists.presets import Columns

OPTIONAL: Mapping[str, pa.DataType] = {
    "license": pa.string(),
    "similarity": pa.float64(),  # of image and caption, computed by CLIP
    "nsfw": pa.string(),
    "punsafe": pa.float64(),
    "pwatermark": pa.float64(),
}
"""Optional columns of some lists, by our names."""

_SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}


def select_columns(uri: str, names: Sequence[str], columns: Columns) -> dict[str, int]:
    """Maps each of our columns to the index of its column in the file: url, caption, and those of OPTIONAL and
    `caption_second` that exist.

    Raises ValueError, in one line, if the URL or the caption column is missing or ambiguous.
    """
    selected: dict[str, int] = {}
    for ours, candidates in (
        ("url", columns.url),
        ("caption", columns.caption),
        ("caption_second", (columns.caption_second or "",)),
        ("license", columns.license),
        *((name, (name,)) for name in OPTIONAL if name != "license"),
    ):
        found = next((found for name in candidates if (found := _indices(names, name, columns.exact))), [])
        if len(found) > 1 and ours in ("url", "caption"):
            several = " and ".join(f"{names[index]!r} (column {index + 1})" for index in found)
            raise ValueError(
                f"{uri}: several columns may be the {ours}: {several}; give each another name, or name one with "
                f"--{ours}-column"
            )
        if found:
            selected[ours] = found[0]
        elif ours in ("url", "caption"):
            shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
            raise ValueError(
                f"{uri}: no column {' or '.join(candidates)}; it has {shown[:300] or 'none'}: "
                f"{_hint(names, columns) or f'give --{ours}-column, or the --preset of its data set'}"
            )
    return selected


def _indices(names: Sequence[str], name: str, exact: bool) -> list[int]:
    """Returns the indices of a name, ignoring case. `exact`: if some match its case, too, returns only those."""
    found = [index for index, known in enumerate(names) if known.strip().lower() == name.lower()]
    same = [index for index in found if names[index].strip() == name]
    return same if exact and same else found


def _hint(names: Sequence[str], columns: Columns) -> str | None:
    """Suggests a fix for a file without a header, or with another separator."""
    if any(name.strip().lower().startswith(("http://", "https://")) for name in names):
        return (
            "line 1 has a URL, so the file lacks its header; add a line with the names of the columns, or give --preset"
        )
    for separator, words in _SEPARATORS.items():
        parts = [part for name in names if separator in name for part in name.split(separator)]
        if any(_indices(parts, name, False) for name in columns.url):
            ending = {",": ".csv", "\t": ".tsv"}.get(separator)
            fix = f"name it {ending}" if ending else "write it with commas, as csv, or tabs, as tsv"
            return f"line 1 looks separated by {words}; {fix}"
    return None
