"""Makes the slices of a window: reads rows, decodes and augments images, draws prompts, tokenises texts. Runs in the
tasks of `pipelines.ingest.loader`, and also without Ray.
"""

import functools
import math
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from groupvit.augment import Operation, operation_columns
from groupvit.captions import PLAIN_TEMPLATES, PROMPT_TEMPLATES, draw_prompts, mine_nouns
from groupvit.config import from_dict
from groupvit.tokenizer import Tokenizer
from groupvit.transforms import TrainSample, TrainTransform
from pipelines import storage
from pipelines.dataset.format import read_row_groups
from pipelines.experiments.config import IngestConfig
from pipelines.ingest.caption_choice import caption_index, hash_text, mixed_caption_index
from pipelines.ingest.plan import IngestPlan, Slice
from pipelines.ingest.sampling import Samples
from pipelines.ingest.uncurated import read_raw_row_group, with_captions


def load_slices(plan: IngestPlan, first: int, end: int) -> list[Slice]:
    """Loads slices `first` to `end` - 1, which must be in one window.

    The generators of a sample are seeded by (seed, epoch, sample id). A corrupted image is replaced by the next sample
    of its window that can be decoded, with the seeds of the original sample. Raises ValueError if all are corrupted.
    """
    window, first_place = divmod(first * plan.slice_size, plan.order.window_size)
    samples = plan.order.window(window)
    rows = _read_rows(plan, samples)
    return [
        _make_slice(plan, samples, rows, range(place, place + plan.slice_size))
        for place in range(first_place, first_place + (end - first) * plan.slice_size, plan.slice_size)
    ]


def _make_slice(plan: IngestPlan, samples: Samples, rows: Sequence[Mapping[str, Any]], places: range) -> Slice:
    ingest = from_dict(IngestConfig, plan.options)
    transform = TrainTransform(
        image_size=plan.image_size,
        recipe=ingest.augmentation,
        crop_scale=ingest.crop_scale,
        color_jitter=ingest.color_jitter,
        resize="pillow" if ingest.resize == "pillow" else "torch",
        augment_on=ingest.augment_on,
    )
    templates = PROMPT_TEMPLATES if ingest.prompt_templates == "clip" else PLAIN_TEMPLATES
    side = plan.image_size
    images = _image_memory().empty((len(places), 3, side, side))
    erase_boxes = np.empty((len(places), 4), dtype=np.int16)
    noise_seeds = np.empty(len(places), dtype=np.int64)
    flips = np.empty(len(places), dtype=bool)
    operations: list[tuple[Operation | None, ...]] = []
    substituted = np.zeros(len(places), dtype=bool)
    prompt_keys = np.empty((len(places), plan.num_prompts), dtype=np.int64)
    texts: list[str] = []
    for index, place in enumerate(places):
        seeds = hash_text(f"{plan.order.seed} {samples.epoch[place]} {rows[place]['sample_id']}", 16)
        used, sample = _transform_first_good(transform, rows, place, seeds % 2**64, images[index])
        _, erase_boxes[index], noise_seeds[index], flips[index], _ = sample
        operations.append(sample.operations)
        substituted[index] = used != place
        caption = rows[used]["caption"]
        prompts, keys = draw_prompts(
            rows[used]["nouns"],
            caption,
            plan.num_prompts,
            np.random.default_rng(seeds >> 64),
            templates=templates,
            padding=ingest.prompt_padding,
        )
        texts += [caption, *prompts]
        prompt_keys[index] = [hash_text(key, 8) - 2**63 for key in keys]
    token_ids = _tokenizer()(texts, plan.context_length)
    window = slice(places.start, places.stop)
    for_device = {}
    if ingest.augment_on == "device":
        indices, arguments = operation_columns(operations)
        for_device = {"flip": flips, "operations": indices, "arguments": arguments}
    return {
        "image": images,
        "token_ids": token_ids.reshape(len(places), 1 + plan.num_prompts, plan.context_length),
        "prompt_keys": prompt_keys,
        "erase_box": erase_boxes,
        "noise_seed": noise_seeds,
        "sample_id": np.array([rows[place]["sample_id"] for place in places], dtype=object),
        "position": samples.position[window],
        "epoch": samples.epoch[window].astype(np.int32),
        "source": samples.source[window].astype(np.int8),
        "substituted": substituted,
        **for_device,
    }


def _transform_first_good(
    transform: TrainTransform, rows: Sequence[Mapping[str, Any]], place: int, seed: int, out: npt.NDArray[np.uint8]
) -> tuple[int, TrainSample]:
    for offset in range(len(rows)):
        used = (place + offset) % len(rows)
        try:
            return used, transform(rows[used]["image"], seed, out=out)
        except ValueError:
            continue  # corrupted: training counts it, from `substituted`
    raise ValueError(f"image: none of the {len(rows)} images of a window can be decoded; curate the data set again")


def _read_rows(plan: IngestPlan, samples: Samples) -> list[dict[str, Any]]:
    """Reads the rows of `samples`, in order, each with its epoch's caption and nouns. Reads every row group once."""
    rows: list[dict[str, Any]] = [{}] * len(samples.position)
    groups, group_of = np.unique(np.stack([samples.source, samples.row_group]), axis=1, return_inverse=True)
    for index, (source, group) in enumerate(groups.T.tolist()):
        places = np.flatnonzero(group_of.reshape(-1) == index)
        found = _read_row_group(plan, source, group).take(samples.row[places]).to_pylist()
        if plan.is_raw[source]:
            found = with_captions(found)
        for place, row in zip(places.tolist(), found, strict=True):
            draw = (plan.order.seed, int(samples.epoch[place]), row["sample_id"])
            if plan.caption_mix and "caption_origins" in row:
                number = mixed_caption_index(row["caption_origins"], plan.caption_mix, *draw)
            else:
                number = caption_index(len(row["captions"]), *draw)
            row["caption"] = row["captions"][number]
            row["nouns"] = (row["nouns"][number] or []) if "nouns" in row else None
            rows[place] = row
    raw = [row for row in rows if row["nouns"] is None]
    for row, nouns in zip(raw, mine_nouns([row["caption"] for row in raw]) if raw else [], strict=True):
        row["nouns"] = nouns
    return rows


def _read_row_group(plan: IngestPlan, source: int, group: int) -> pa.Table:
    file = int(np.searchsorted(plan.first_groups[source], group, side="right")) - 1
    uri = storage.join(plan.uris[source], plan.files[source][file])
    row_group = group - int(plan.first_groups[source][file])

    def read() -> pa.Table:
        if plan.is_raw[source]:
            return read_raw_row_group(_open_parquet(uri), row_group)
        columns = ["sample_id", "image", "captions", *(["caption_origins"] if plan.caption_mix else []), "nouns"]
        return read_row_groups(_open_parquet(uri), [row_group], columns)

    fix = "download it again" if plan.is_raw[source] else "`groupvit inspect --verify` tells what else is"
    with storage.reporting_corruption(uri, fix):
        return storage.retry(read, uri)


@functools.lru_cache(maxsize=64)
def _open_parquet(uri: str) -> pq.ParquetFile:
    """Opens a file and keeps it open from window to window, so that its footer is not read again."""
    return storage.open_parquet(uri)


@functools.cache
def _tokenizer() -> Tokenizer:
    return Tokenizer()


class ReusedMemory:
    """Memory for byte arrays; a buffer is reused once no array refers to it. Not thread-safe.

    Getting new pages from the system takes half a millisecond for an image of 224 pixels, a quarter of the total work
    for it.
    """

    def __init__(self) -> None:
        self._pieces: list[tuple[memoryview, weakref.ref[npt.NDArray[np.uint8]]]] = []

    def empty(self, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        """Returns an uninitialised uint8 array of `shape`."""
        size = math.prod(shape)
        free = (i for i, (memory, user) in enumerate(self._pieces) if user() is None and len(memory) == size)
        index = next(free, None)
        memory = np.empty(size, dtype=np.uint8).data if index is None else self._pieces[index][0]
        user = np.frombuffer(memory, dtype=np.uint8)  # views keep it alive, because no array owns its memory
        piece = (memory, weakref.ref(user))
        if index is None:
            self._pieces.append(piece)
        else:
            self._pieces[index] = piece
        return user.reshape(shape)


@functools.cache
def _image_memory() -> ReusedMemory:
    return ReusedMemory()
