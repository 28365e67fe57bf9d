"""The steps that each sample passes through by itself, as a list of named steps. A step returns None to keep the
sample, or the reason to drop it. The first reason counts. Cheap steps come first. No step knows what runs it.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pipelines.curation.config import CurateConfig
from pipelines.curation.images import (
    Header,
    Pixels,
    UnusableImageError,
    decode,
    encode_jpeg,
    fits,
    perceptual_hash,
    read_header,
    shrink,
)
from pipelines.curation.opt_out import OptOutList
from pipelines.curation.text import clean_caption, is_missing, is_name, latin_share, letter_share
from pipelines.dataset.raw_shards import failure_reason, nsfw_label


@dataclass(kw_only=True)
class Sample:
    """A row of a raw shard in progress. The steps fill in the fields that are not given."""

    raw: Mapping[str, Any]
    """Values by column, as read by `pipelines.curation.raw`. Columns that a shard lacks are missing."""
    captions: list[str] = field(default_factory=list)
    """The captions that pass, cleaned and without repetitions."""
    caption_drops: Counter[str] = field(default_factory=Counter)
    """Number of the other captions, by reason."""
    header: Header | None = None
    pixels: Pixels | None = None
    image: bytes = b""
    """The image file to write."""
    width: int = 0
    height: int = 0
    sha256: str = ""
    """Hash of the original file, or of the downloaded one if the shard does not have it."""
    perceptual_hash: int | None = None
    nouns: list[list[str]] = field(default_factory=list)
    """Nouns of each caption."""


Check = Callable[[Sample], str | None]


@dataclass(frozen=True, kw_only=True)
class Step:
    name: str
    check: Check
    rule: str
    """What the step requires, in words."""


def sample_steps(config: CurateConfig, opt_out: OptOutList | None) -> list[Step]:
    """Returns all steps, in order."""
    side = config.image_side
    steps = [
        Step(name="download", check=check_download, rule="the image was downloaded"),
        Step(name="scores", check=partial(check_scores, config=config), rule=_scores_rule(config)),
    ]
    if opt_out:
        rule = f"neither URL nor file is on the list of {len(opt_out)} entries"
        steps.append(Step(name="opt-out", check=partial(check_opt_out, opt_out=opt_out), rule=rule))
    return [
        *steps,
        Step(name="caption", check=partial(check_captions, config=config), rule=_caption_rule(config)),
        Step(name="header", check=partial(check_header, config=config), rule=_header_rule(config)),
        Step(
            name="decode", check=partial(check_pixels, side=side), rule="decodes whole; put upright, in 8 bits, in RGB"
        ),
        Step(name="resize", check=partial(resize, side=side), rule=f"short side at most {side} pixels"),
        Step(
            name="encode",
            check=partial(encode, side=side, quality=config.jpeg_quality),
            rule=f"JPEG of quality {config.jpeg_quality}, or the file as it is where that fits",
        ),
        Step(name="hash", check=hash_picture, rule="what duplicates are told by"),
    ]


def check_download(sample: Sample) -> str | None:
    status, data = sample.raw.get("status"), sample.raw.get("jpg")
    if status is not None and status != "success":
        return f"download_{failure_reason(sample.raw.get('error_message'))}"
    return None if data else "download_empty"


def check_scores(sample: Sample, *, config: CurateConfig) -> str | None:
    raw = sample.raw
    if nsfw_label(raw.get("nsfw")) in {label.upper() for label in config.dropped_nsfw_labels}:
        return "nsfw"
    for column, limit, sign, reason in (
        ("punsafe", config.max_punsafe, 1, "nsfw"),
        ("pwatermark", config.max_pwatermark, 1, "watermark"),
        ("similarity", config.min_similarity, -1, "similarity_too_low"),
    ):
        value = raw.get(column)
        if value is not None and limit is not None and sign * (value - limit) > 0:
            return reason
    return None


def check_opt_out(sample: Sample, *, opt_out: OptOutList) -> str | None:
    known, url = sample.raw.get("sha256"), sample.raw.get("url")
    if (url and opt_out.has_url(url)) or (known and opt_out.has_sha256(known)):
        return "opt_out_list"
    return "opt_out_list" if opt_out.any_sha256 and opt_out.has_sha256(file_sha256(sample.raw["jpg"])) else None


def raw_captions(raw: Mapping[str, Any]) -> Sequence[str | None]:
    """Returns the captions of a row as they came: at least one, which may be missing."""
    return raw.get("captions") or [raw.get("caption")]


def check_captions(sample: Sample, *, config: CurateConfig) -> str | None:
    """Drops invalid captions. If none is left, drops the sample for the reason of its first caption."""
    kept: dict[str, None] = {}
    first: str | None = None
    for text in raw_captions(sample.raw):
        caption = clean_caption(text) if text else ""
        reason = wrong_with_caption(caption, config)
        first = first or reason
        if reason is None and caption in kept:
            reason = "caption_repeated"
        if reason is None:
            kept[caption] = None
        else:
            sample.caption_drops[reason] += 1
    sample.captions = list(kept)
    return None if kept else first


def wrong_with_caption(caption: str, config: CurateConfig) -> str | None:
    """Returns the reason for dropping a clean caption, or None if it passes."""
    if not caption or is_missing(caption):
        return "caption_empty"
    if is_name(caption):
        return "caption_is_a_name"
    num_words = len(caption.split())
    if num_words < config.min_words or len(caption) < config.min_characters:
        return "caption_too_short"
    if _above(num_words, config.max_words) or _above(len(caption), config.max_characters):
        return "caption_too_long"
    if config.min_letter_share is not None and letter_share(caption) < config.min_letter_share:
        return "caption_few_letters"
    if config.min_latin_share is not None and latin_share(caption) < config.min_latin_share:
        return "caption_other_alphabet"
    return None


def check_header(sample: Sample, *, config: CurateConfig) -> str | None:
    try:
        sample.header = header = read_header(sample.raw["jpg"])
    except UnusableImageError as error:
        return str(error)
    short, long = sorted((header.width, header.height))
    if short * long > config.max_pixels:
        return "image_too_many_pixels"
    if header.animated:
        return "image_animated"
    if short < config.min_side:
        return "image_too_small"
    return "image_aspect_ratio" if _above(long, config.max_aspect_ratio and config.max_aspect_ratio * short) else None


def check_pixels(sample: Sample, *, side: int) -> str | None:
    assert sample.header is not None
    try:
        sample.pixels = decode(sample.raw["jpg"], sample.header, least_side=side)
    except UnusableImageError as error:
        return str(error)
    return None


def resize(sample: Sample, *, side: int) -> None:
    assert sample.pixels is not None
    sample.pixels = shrink(sample.pixels, side)
    sample.height, sample.width = sample.pixels.shape[:2]


def encode(sample: Sample, *, side: int, quality: int) -> None:
    assert sample.pixels is not None and sample.header is not None
    sample.image = sample.raw["jpg"] if fits(sample.header, side) else encode_jpeg(sample.pixels, quality)


def hash_picture(sample: Sample) -> None:
    assert sample.pixels is not None
    sample.sha256 = (sample.raw.get("sha256") or file_sha256(sample.raw["jpg"])).lower()
    sample.perceptual_hash = perceptual_hash(sample.pixels)
    sample.pixels = None  # the largest field, no longer needed


def file_sha256(image: bytes) -> str:
    return hashlib.sha256(image).hexdigest()


def _above(value: float, limit: float | None) -> bool:
    return limit is not None and value > limit


def _scores_rule(config: CurateConfig) -> str:
    rules = [f"no label {', '.join(config.dropped_nsfw_labels)}"] if config.dropped_nsfw_labels else []
    rules += [f"punsafe at most {config.max_punsafe}"] if config.max_punsafe is not None else []
    rules += [f"pwatermark at most {config.max_pwatermark}"] if config.max_pwatermark is not None else []
    rules += [f"similarity at least {config.min_similarity}"] if config.min_similarity is not None else []
    return ("; ".join(rules) or "all pass") + ", where the shards say"


def _caption_rule(config: CurateConfig) -> str:
    return (
        f"{config.min_words} to {config.max_words or 'any number of'} words and {config.min_characters} to "
        f"{config.max_characters or 'any number of'} characters once clean, {config.min_letter_share or 0:.0%} "
        f"letters, {config.min_latin_share or 0:.0%} of them Latin; not only a URL or file name; of several, an image "
        f"keeps those that pass, {config.max_captions} at most"
    )


def _header_rule(config: CurateConfig) -> str:
    ratio = config.max_aspect_ratio
    return f"an image, not animated, of at most {config.max_pixels:,} pixels, short side at least {config.min_side}" + (
        f", at most {ratio:g} times as long as wide" if ratio is not None else ""
    )
