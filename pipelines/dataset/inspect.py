"""Shows the content of a data set, in the terminal and as a page, and verifies it.

groupvit inspect data/train --out inspect.html
groupvit inspect s3://bucket/dataset --verify
"""

import io
import sys
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import tyro
from PIL import Image

from groupvit.decode import decode_image
from pipelines import storage
from pipelines.dataset.card import card_text, read_card
from pipelines.dataset.format import DatasetInfo, open_dataset
from pipelines.dataset.page import Sample, dataset_page
from pipelines.dataset.row_groups import Run, in_threads, read_columns, runs_of
from pipelines.dataset.verification import Verification, verify
from pipelines.local.writable import check_file_writable

_THUMBNAIL_SIDE = 160  # pixels; about 6 kB each
_MOST_SAMPLES = 500


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Configures which data set to show, and how much of it."""

    dataset: Annotated[str, tyro.conf.Positional]
    """Folder of a data set: a local path or s3:// URI."""
    out: str = "inspect.html"
    """Page to write: a local path or s3:// URI."""
    num_samples: int = 60
    """Number of samples on the page, evenly spaced. Each adds about 10 kB."""
    max_counted_samples: int = 1_000_000
    """Largest number of samples to count sizes, captions and nouns of. For a larger data set, samples of evenly spaced
    row groups are counted."""
    verify: bool = False
    """Whether to first re-read everything and compare it with the manifest: every file, row group and image."""

    def __post_init__(self) -> None:
        if not self.out.endswith(".html"):
            raise ValueError(f"out={self.out} is not a page: give a file name that ends in .html")
        if not 0 <= self.num_samples <= _MOST_SAMPLES:
            raise ValueError(f"num_samples={self.num_samples}: give 0 to {_MOST_SAMPLES}")
        if self.max_counted_samples < 1:
            raise ValueError(f"max_counted_samples={self.max_counted_samples}: at least 1 is needed")


def inspect_dataset(config: InspectConfig) -> dict[str, Any]:
    """Prints the card, writes the page, and returns the content of the card, JSON-safe.

    Raises ValueError if the data set is invalid. With `config.verify`, prints all problems first.
    """
    info = open_dataset(config.dataset)
    out = storage.absolute(config.out)
    check_file_writable(out, "out")
    verified = {}
    if config.verify:
        verification = verify(info)
        _report(info, verification)
        verified = {"num_samples_verified": verification.num_samples_read, "orphans": list(verification.orphans)}
    card = read_card(info, config.max_counted_samples)
    print(card_text(card))
    page = dataset_page(card, _read_samples(info, config.num_samples))
    storage.write_bytes(out, page.encode())
    print(f"wrote {out}", file=sys.stderr)
    return card.summary() | verified | {"page": out}


def _report(info: DatasetInfo, verification: Verification) -> None:
    """Prints the problems found. Raises ValueError if there are any."""
    for problem in verification.problems:
        print(problem, file=sys.stderr)
    if verification.num_problems > len(verification.problems):
        print(f"and {verification.num_problems - len(verification.problems):,} more problems", file=sys.stderr)
    if verification.orphans:
        print(
            f"notice: {len(verification.orphans):,} files in data/ are not in the manifest, first "
            f"{verification.orphans[0]}: nothing reads them, they can be removed",
            file=sys.stderr,
        )
    if verification.num_problems:
        raise ValueError(
            f"{info.uri}: {verification.num_problems:,} problems, see above; copy the data set again from where it is "
            "whole, or write it again"
        )


def _read_samples(info: DatasetInfo, num_samples: int) -> list[Sample]:
    count = min(num_samples, info.num_samples)
    rows = (2 * np.arange(count) + 1) * info.num_samples // max(2 * count, 1)  # numbered across the data set
    ends = np.cumsum(info.rows, dtype=np.int64)
    groups = np.searchsorted(ends, rows, side="right")
    rows -= (ends - info.rows)[groups]

    def read(group: int) -> list[Sample]:
        [run] = runs_of(info, np.array([group]))
        return _samples(info, run, rows[groups == group])

    return [sample for samples in in_threads(read, np.unique(groups).tolist()) for sample in samples]


def _samples(info: DatasetInfo, run: Run, rows: np.ndarray) -> list[Sample]:
    columns = ["image", "captions", "caption_origins", "nouns", "width", "height", "source", "url"]
    table = read_columns(info, run, columns).take(rows)
    return [
        Sample(thumbnail=_thumbnail(row.pop("image")), origins=row.pop("caption_origins"), **row)
        for row in table.to_pylist()
    ]


def _thumbnail(image: bytes) -> bytes | None:
    try:
        pixels = decode_image(image)
    except ValueError:
        return None
    thumbnail, encoded = Image.fromarray(pixels), io.BytesIO()
    thumbnail.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
    thumbnail.save(encoded, "JPEG", quality=80)
    return encoded.getvalue()
