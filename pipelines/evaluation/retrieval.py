"""Retrieval of the captions of images and of the images of captions in a data set, with an exact result.

    groupvit evaluate --checkpoint runs/coco --benchmark retrieval --root s3://bucket/coco-held-out

It needs no masks, so it is how to choose between runs without looking at the data on which masks are scored. The result
does not depend on the number of workers: each row group is embedded apart, always in the same batches.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from groupvit.checkpoint import load, load_state
from groupvit.config import Precision
from groupvit.decode import decode_image
from groupvit.finishing import to_tensor
from groupvit.interop.model_card import license_of
from groupvit.model import GroupViT
from groupvit.precision import autocast
from groupvit.retrieval import caption_ranks
from groupvit.tokenizer import Tokenizer
from groupvit.transforms import center_crop
from pipelines import storage
from pipelines.console.progress import ProgressLine
from pipelines.dataset.format import DatasetInfo, batched, open_dataset, read_row_groups
from pipelines.evaluation.config import EvaluateConfig
from pipelines.evaluation.workers import model_workers, resolved_precision
from pipelines.runs.checkpoints import local_checkpoint

DEFAULT_BATCH_SIZE = 64
RECALLS = (1, 5, 10)
MAX_IMAGES = 100_000
"""All similarities are computed: this many images with five captions each take some minutes."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """Inputs shared by all row groups."""

    dataset: DatasetInfo
    batch_size: int
    precision: Precision


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """Embeddings of unit length of one row group."""

    images: NDArray[np.float32]
    """[N, D]"""
    captions: NDArray[np.float32]
    """[M, D], those of the first image first."""
    num_captions: NDArray[np.int64]
    """[N]: number of captions of each image."""


class Embedder:
    """Holds a model, and embeds row groups."""

    def __init__(self, model: GroupViT, *, num_threads: int, device: str = "cpu") -> None:
        torch.set_num_threads(num_threads)
        self._model = model.to(device).eval()
        self._tokenizer = Tokenizer()
        self.device = torch.device(device)

    @torch.inference_mode()
    def embed(self, task: Task, row_group: int) -> Embedded:
        """Embeds the images and captions of a row group. Raises ValueError for an image that cannot be read."""
        dataset, config = task.dataset, self._model.config
        file = int(np.searchsorted(dataset.first_groups, row_group, side="right")) - 1
        place = storage.join(dataset.uri, dataset.files[file])
        with storage.open_parquet(place) as parquet:
            group = row_group - int(dataset.first_groups[file])
            rows = read_row_groups(parquet, [group], ["sample_id", "image", "captions"]).to_pylist()
        images, captions = [], []
        for batch in batched(rows, task.batch_size):
            pixels = [self._pixels(row) for row in batch]
            tokens = self._tokenizer([text for row in batch for text in row["captions"]], config.text.context_length)
            with autocast(self.device, task.precision):
                embedded = self._model.encode_image(torch.stack(pixels).to(self.device)).embedding
                texts = self._model.encode_text(torch.from_numpy(tokens.astype(np.int64)).to(self.device))
            images.append(F.normalize(embedded.float(), dim=-1).cpu().numpy())
            captions.append(F.normalize(texts.float(), dim=-1).cpu().numpy())
        return Embedded(
            images=np.concatenate(images),
            captions=np.concatenate(captions),
            num_captions=np.array([len(row["captions"]) for row in rows]),
        )

    def _pixels(self, row: dict[str, Any]) -> torch.Tensor:
        try:
            return to_tensor(center_crop(decode_image(row["image"]), self._model.config.image.image_size))
        except ValueError as error:
            raise ValueError(f"sample {row['sample_id']}: {error}; write the data set again") from None


def retrieve(config: EvaluateConfig) -> dict[str, Any]:
    """Embeds a data set, prints the recalls, writes and returns the content of metrics.json.

    Raises ValueError for invalid arguments and for an image that cannot be read.
    """
    dataset = open_dataset(config.root)
    if not 2 <= dataset.num_samples <= MAX_IMAGES:
        raise ValueError(
            f"root={config.root} has {dataset.num_samples:,} images: retrieval compares each with each, so give a data "
            f"set of 2 to {MAX_IMAGES:,}"
        )
    started = time.monotonic()
    with local_checkpoint(config.checkpoint) as folder:
        model, state = load(folder), load_state(folder)
    embedded, precision = _embed(config, dataset, model)
    images, captions, counts = (
        np.concatenate([getattr(part, name) for part in embedded]) for name in ("images", "captions", "num_captions")
    )
    if not (np.isfinite(images).all() and np.isfinite(captions).all()):
        raise ValueError(f"checkpoint={config.checkpoint} gives embeddings that are not finite: use another checkpoint")
    of_images, of_captions = caption_ranks(images, captions, np.repeat(np.arange(len(images)), counts))
    metrics: dict[str, float] = {}
    for name, ranks in (("image_to_text", of_images), ("text_to_image", of_captions)):
        metrics |= {f"{name}_recall_{count}": 100 * float(np.mean(ranks < count)) for count in RECALLS}
        metrics[f"{name}_median_rank"] = float(np.median(ranks)) + 1
    seconds = time.monotonic() - started
    summary = {
        "checkpoint": config.checkpoint,
        "step": int(state.get("step") or 0),
        "license": license_of(state),
        "benchmark": "retrieval",
        "data": dataset.uri,
        "data_digest": dataset.digest,
        "precision": precision,
        "num_images": len(images),
        "official_num_images": None,
        "num_captions": len(captions),
        "metrics": metrics,
        "seconds": round(seconds, 2),
    }
    print(f"{len(images):,} images and {len(captions):,} captions of {dataset.uri}, {precision}")
    for name in ("image_to_text", "text_to_image"):
        recalls = ", ".join(f"R@{count} {metrics[f'{name}_recall_{count}']:.2f} %" for count in RECALLS)
        print(f"{name.replace('_', ' ')}: {recalls}, median rank {metrics[f'{name}_median_rank']:g}")
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "metrics.json").write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return summary


def _embed(config: EvaluateConfig, dataset: DatasetInfo, model: GroupViT) -> tuple[list[Embedded], Precision]:
    """Returns the embeddings of each row group, in order."""
    resources = {"cpus_per_worker": config.cpus_per_worker, "gpus_per_worker": config.gpus_per_worker}
    found: dict[int, Embedded] = {}
    with model_workers(Embedder, model, config.num_workers, **resources) as workers:
        precision = resolved_precision(workers, config.precision)
        task = Task(dataset=dataset, batch_size=config.batch_size or DEFAULT_BATCH_SIZE, precision=precision)
        with ProgressLine("retrieval: embedded", dataset.num_samples, "images") as progress:
            for index, embedded in workers.each(Embedder.embed, task, range(len(dataset.rows))):
                found[index] = embedded
                progress.add(len(embedded.images))
    return [found[index] for index in range(len(dataset.rows))], precision
