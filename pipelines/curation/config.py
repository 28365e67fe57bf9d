"""Configuration of a curation: its raw shards, rules and output."""

import dataclasses
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from groupvit.captions import DEFAULT_TAGGER
from groupvit.decode import MAX_PIXELS
from pipelines import storage
from pipelines.curation.formats.columns import parse_columns
from pipelines.curation.recaptions.files import Join, parse_recaption_columns
from pipelines.dataset.format import DEFAULT_ROWS_PER_GROUP, ORIGINAL
from pipelines.errors import require_at_least
from pipelines.local.folder_names import split_name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A folder of raw shards with its name."""

    name: str
    uri: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class CurateConfig:
    """Configures how raw shards become a data set. None disables a rule. Rules on missing columns pass all rows."""

    raw: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Raw shards: a path or URI, or name=URI. A folder, as written by `groupvit download` or img2dataset, or of
    webdataset tars, Hugging Face parquet, or images with metadata.csv, .tsv or .jsonl; one such file (the table may
    have any name); or a range like DIR/{00000..00331}.tar. An existing folder whose path contains `=`, like
    year=2020/raw, is taken as a path. May be repeated. Of duplicates, the one in the first given folder is kept."""
    out: str
    """Folder or URI of the data set to write."""
    columns: tuple[str, ...] = ()
    """Columns of raw shards whose names are not found out, e.g. image=photo caption=alt_en caption=alt_de. Several
    columns of captions are joined. Of tars, keys of the .json. Fields: image, caption, url, license, sha256,
    similarity, nsfw, punsafe, pwatermark."""

    # Recaptions
    captions_from: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """More captions for the images of `raw`, e.g. those that a model wrote: a file or folder of parquet, csv, tsv or
    jsonl with a column of keys and a column of captions, texts or lists of texts. May be repeated, each with its --as.
    The samples, their ids and their order stay as they are without."""
    join: Join | None = None
    """What a row of `captions_from` and its row of `raw` have in common: `url`, `key` (webdataset's __key__, or the key
    of img2dataset), or `sha256` (of the original file)."""
    origins: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(name="as")] = ()
    """Name of the captions of `captions_from`, e.g. llava, by which --data.caption-mix of `groupvit pretrain` finds
    them. One for each."""
    recaption_columns: tuple[str, ...] = ()
    """Columns of `captions_from` whose names are not found out, e.g. key=image_id caption=text. Fields: that of `join`,
    and caption."""
    context_length: int = 77
    """Number of tokens that the text encoder reads, with start and end of text. Longer captions of `captions_from` are
    cut after the last sentence that fits, or else after the last word."""

    # Images
    image_side: int = 256
    """Short side in pixels to which larger images are shrunk (the tier)."""
    jpeg_quality: int = 90
    """JPEG quality of images that are encoded again. JPEGs that are already small and upright are copied."""
    max_pixels: int = MAX_PIXELS
    """Largest number of pixels. An image with more, by its header, is dropped without decoding it."""
    min_side: int = 64
    """Smallest short side in pixels."""
    max_aspect_ratio: float | None = 4.0
    """Largest ratio of long to short side."""

    # Captions
    min_words: int = 1
    max_words: int | None = 128
    min_characters: int = 3
    max_characters: int | None = 1024
    min_letter_share: float | None = 0.5
    """Smallest share of letters among the characters that are not white space. Numbers and codes are not captions."""
    min_latin_share: float | None = 0.7
    """Smallest share of Latin letters among the letters, because the vocabulary is English."""
    max_images_per_caption: int | None = 10
    """Largest number of images with the same caption. A more frequent caption is boilerplate: it is dropped, and so are
    images without another caption."""

    captions: Literal["merge", "first"] = "merge"
    """`merge`: an image keeps all its captions that pass, and gets those of its duplicates (same file or content).
    `first`: it keeps the first one that passes."""
    max_captions_per_image: int = 10
    """Largest number of captions of an image. Further ones are dropped."""

    # Scores, if the shards have them
    min_similarity: float | None = None
    """Smallest CLIP score (column `similarity`), on the scale of the model that computed it."""
    max_punsafe: float | None = 0.5
    """Largest probability that the image is unsafe (column `punsafe`)."""
    dropped_nsfw_labels: tuple[str, ...] = ("NSFW",)
    """Values of the column `NSFW` that are dropped, ignoring case. True and 1 mean NSFW, as in some lists."""
    max_pwatermark: float | None = 0.8
    """Largest probability of a watermark (column `pwatermark`)."""

    # Corpus
    opt_out: str | None = None
    """File (path or URI) of images that must not be used. Each line is a URL, a domain (which includes its subdomains)
    or the sha256 of an image file."""
    near_duplicate_distance: int | None = 4
    """Images whose 64-bit perceptual hashes differ in at most this many bits (0 to 7) are near-duplicates: an image is
    dropped if an earlier, kept one is that near. Larger values are slower."""
    seed: int = 0
    """Seed for the order of the samples."""
    tagger: str = DEFAULT_TAGGER
    """spaCy pipeline that finds the nouns: the name of an installed one, or a folder."""

    # Files
    rows_per_group: int = DEFAULT_ROWS_PER_GROUP
    """Rows per row group of the data set: what training reads at once."""
    groups_per_file: int = 8
    """Row groups per file. Small files need little memory to write."""
    rows_per_piece: int = 1024
    """Number of rows of a raw shard processed at once, and at most lost when curation is interrupted."""
    skip_unreadable_shards: bool = False
    """Whether to skip and count corrupted raw shards. Otherwise they are an error."""

    # How it runs
    num_workers: int | None = None
    """Number of worker processes, at most one per CPU of the cluster. None: one per CPU."""
    show_ray_logs: bool = False
    plan: bool = False
    """Only print what would be done, how long it would take and what it would cost, from a measured sample."""
    plan_rows: int = 512
    """Number of rows to measure for the plan."""
    cost_per_core_hour: float = 0.05
    """Price of one core for one hour, for the plan, in any currency."""

    @property
    def sources(self) -> tuple[Source, ...]:
        return tuple(_source(text) for text in self.raw)

    @property
    def recaptions(self) -> tuple[Source, ...]:
        """The recaptions by origin."""
        pairs = zip(self.origins, self.captions_from, strict=True)
        return tuple(Source(name=name, uri=storage.absolute(uri)) for name, uri in pairs)

    @property
    def max_captions(self) -> int:
        return 1 if self.captions == "first" else self.max_captions_per_image


_RANGE = ".."  # in the name of files 00000 to 00331: {00000..00331}.tar
_FREE = (
    *("raw", "out", "num_workers", "show_ray_logs", "plan", "plan_rows", "cost_per_core_hour"),
    *("opt_out", "captions_from"),  # their content matters, not their path
)
_OF_RECAPTIONS = ("join", "origins", "recaption_columns", "context_length")
_MOST_ORIGINS = 100
_ORIGIN = re.compile(r"[A-Za-z0-9][\w.-]{0,99}", re.ASCII)


def fixes_the_result(config: CurateConfig) -> dict[str, Any]:
    """Returns the fields, JSON-safe, that must not change when an interrupted curation resumes."""
    # As in curations begun before there were these fields.
    free = (*_FREE, *(() if config.columns else ("columns",)), *(() if config.captions_from else _OF_RECAPTIONS))
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in dataclasses.asdict(config).items()
        if name not in free
    }


def validate(config: CurateConfig) -> None:
    """Raises ValueError for the first invalid field: one line with the field, its value and what would be valid."""
    if not config.raw:
        raise ValueError(
            "raw is empty: give a folder of raw shards, e.g. --raw data/raw or --raw cc3m=s3://bucket/cc3m"
        )
    _check_names(config.sources)
    parse_columns(config.columns)
    _check_recaptions(config)
    if not config.out:
        raise ValueError("out is empty: give a folder or URI for the data set")
    require_at_least(config, image_side=16, jpeg_quality=1, max_pixels=1, min_side=1, max_aspect_ratio=1)
    require_at_least(config, min_words=0, max_words=config.min_words)
    require_at_least(config, min_characters=1, max_characters=config.min_characters)
    require_at_least(config, min_letter_share=0, min_latin_share=0, max_punsafe=0, max_pwatermark=0)
    require_at_least(config, max_images_per_caption=1, max_captions_per_image=1, near_duplicate_distance=0, seed=0)
    require_at_least(config, rows_per_group=1, groups_per_file=1, rows_per_piece=1, plan_rows=1)
    require_at_least(config, num_workers=1, cost_per_core_hour=0)
    shares = dict.fromkeys(("min_letter_share", "min_latin_share", "max_punsafe", "max_pwatermark"), 1)
    for name, most in {"image_side": 4096, "jpeg_quality": 100, "near_duplicate_distance": 7, **shares}.items():
        value = getattr(config, name)
        if value is not None and value > most:
            raise ValueError(f"{name}={value} is too large: give at most {most}")
    # find_spec, because importing spaCy takes seconds
    installed = config.tagger.isidentifier() and importlib.util.find_spec(config.tagger) is not None
    if not installed and not Path(config.tagger).is_dir():
        raise ValueError(
            f"tagger: no spaCy pipeline {config.tagger!r} is installed; leave the default after python -m pip install "
            "'groupvit[nouns]'"
        )


def _check_names(sources: Sequence[Source]) -> None:
    names = [source.name for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"raw: two folders are named {name!r}; name them apart, e.g. --raw {name}-2=URI")


def _check_recaptions(config: CurateConfig) -> None:
    if not config.captions_from:
        for name, flag in (("join", "join"), ("origins", "as"), ("recaption_columns", "recaption_columns")):
            if value := getattr(config, name):
                raise ValueError(f"{flag}={value} is about recaptions: give --captions-from URI, too")
        return
    if config.join is None:
        raise ValueError(f"captions_from={config.captions_from[0]!r} needs a key: give --join url, key or sha256")
    if len(config.origins) != len(config.captions_from):
        raise ValueError(
            f"captions_from is given {len(config.captions_from)} times and as {len(config.origins)} times: give one "
            "--as NAME for each"
        )
    for name in config.origins:
        if not _ORIGIN.fullmatch(name) or name == ORIGINAL:
            what = "is the name of the captions of raw" if name == ORIGINAL else "is not a name"
            raise ValueError(f"as={name!r} {what}: give letters, digits, - and _, e.g. --as llava")
        if config.origins.count(name) > 1:
            raise ValueError(f"as={name!r} is given twice: name each captions_from apart")
    if len(config.origins) > _MOST_ORIGINS:
        raise ValueError(f"captions_from is given {len(config.origins)} times: give at most {_MOST_ORIGINS}")
    if config.join == "key" and len(config.raw) > 1:
        raise ValueError(
            f"join=key with {len(config.raw)} folders of raw: keys mean something only within one of them; curate them "
            "apart, or give --join url or sha256"
        )
    parse_recaption_columns(config.recaption_columns, config.join)
    require_at_least(config, context_length=3)


def _source(text: str) -> Source:
    name, uri = split_name(text)
    if not uri:
        raise ValueError(f"raw={text!r} has no path: give a folder of raw shards, or name=folder")
    folder, _, last = uri.rstrip("/").rpartition("/")
    if last.endswith((".tar", ".jsonl", ".csv", ".tsv")) or _RANGE in last:
        last = folder.rpartition("/")[2]
    return Source(name=name or last or "raw", uri=storage.absolute(uri))
