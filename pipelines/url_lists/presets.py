"""The columns of published URL lists.

cc3m (Train_GCC-training.tsv), cc12m (cc12m.tsv), redcaps (the folder of annotation files), coco (captions_*.json),
yfcc14m: rows of YFCC100M's metadata (a .tsv of 25 fields, percent-encoded, without header; or parquet with its field
names). Of these, the user keeps the lines that OpenAI's yfcc100m_subset_data.tsv names.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

Preset = Literal["cc3m", "cc12m", "yfcc14m", "redcaps", "coco"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Columns:
    """Names the columns to read from a list. Names are compared without case."""

    header: tuple[str, ...] | None = None
    """Names of the columns of csv and tsv files without a header line."""
    url: tuple[str, ...] = ("url",)
    """Possible column names. The first that a file has is used."""
    caption: tuple[str, ...] = ("caption", "text")
    """Possible column names. The first that a file has is used."""
    caption_second: str | None = None
    """A column whose text is appended to the caption."""
    license: tuple[str, ...] = ("license",)
    percent_encoded: bool = False
    """Whether captions are percent-encoded like URLs."""
    exact: bool = False
    """Whether to prefer a column whose name also matches in case, because the user has named it."""


_YFCC_FIELDS = (
    "line photoid hash uid unickname datetaken dateuploaded capturedevice title description usertags machinetags "
    "longitude latitude accuracy pageurl downloadurl licensename licenseurl serverid farmid secret secretoriginal ext "
    "marker"
)
PRESETS: Mapping[Preset, Columns] = {
    "cc3m": Columns(header=("caption", "url")),
    "cc12m": Columns(header=("url", "caption")),
    "yfcc14m": Columns(
        header=tuple(_YFCC_FIELDS.split()),
        url=("downloadurl",),
        caption=("title",),
        caption_second="description",
        license=("licenseurl",),
        percent_encoded=True,
    ),
    "redcaps": Columns(),
    "coco": Columns(url=("coco_url",)),
}
