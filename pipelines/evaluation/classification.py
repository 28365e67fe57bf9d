"""Zero-shot classification of ImageNet's validation images by several workers, with an exact result.

The result does not depend on the number of workers: only hits are summed, and blocks and batches are always cut the
same way. A class is embedded by its name in prompt templates; its embedding is the mean over the templates.
"""

import csv
import io
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from groupvit.captions import TEMPLATE_SETS
from groupvit.checkpoint import load, load_state
from groupvit.config import Precision
from groupvit.finishing import to_tensor
from groupvit.interop.model_card import license_of
from groupvit.model import GroupViT
from groupvit.precision import autocast
from groupvit.tokenizer import Tokenizer
from groupvit.transforms import center_crop
from groupvit.zero_shot import class_embeddings, classify
from pipelines.benchmarks.imagenet import NUM_IMAGES, ImageNetDataset, open_imagenet
from pipelines.console.progress import ProgressLine
from pipelines.console.tables import count_of
from pipelines.dataset.format import batched
from pipelines.evaluation.config import EvaluateConfig
from pipelines.evaluation.workers import model_workers, resolved_precision
from pipelines.runs.checkpoints import local_checkpoint

CLASSES_PER_TASK = 50
DEFAULT_BATCH_SIZE = 64
DEFAULT_TEMPLATES = "subset"  # as accurate as all 80, according to GroupViT
TOP = 5


@dataclass(frozen=True, kw_only=True)
class Hits:
    """Counts by true class, int64 [C]: images, images whose class ranks first, images whose class is in the top 5."""

    images: NDArray[np.int64]
    top1: NDArray[np.int64]
    top5: NDArray[np.int64]

    @staticmethod
    def none(num_classes: int) -> "Hits":
        """Returns the counts of no images: zeros."""
        zeros = np.zeros(num_classes, dtype=np.int64)
        return Hits(images=zeros, top1=zeros, top5=zeros)

    def plus(self, other: "Hits") -> "Hits":
        return Hits(images=self.images + other.images, top1=self.top1 + other.top1, top5=self.top5 + other.top5)


@dataclass(frozen=True, kw_only=True)
class Task:
    """Inputs shared by all blocks."""

    dataset: ImageNetDataset
    embeddings: NDArray[np.float32]
    """Class embeddings of unit length, [C, D]."""
    batch_size: int
    precision: Precision


def classify_images(config: EvaluateConfig) -> dict[str, Any]:
    """Classifies all images, prints the result, writes the folder, and returns the content of its metrics.json.

    Raises ValueError for invalid arguments and for an image that cannot be read.
    """
    dataset = open_imagenet(config.root)
    started = time.monotonic()
    with local_checkpoint(config.checkpoint) as folder:
        model, state = load(folder), load_state(folder)
    hits, precision = _count_hits(config, dataset, model)
    num_images = int(hits.images.sum())
    seconds = time.monotonic() - started
    summary = {
        "checkpoint": config.checkpoint,
        "step": int(state.get("step") or 0),
        "license": license_of(state),
        "benchmark": "imagenet",
        "data": dataset.uri,
        "data_digest": dataset.digest,
        "templates": config.templates or DEFAULT_TEMPLATES,
        "precision": precision,
        "num_images": num_images,
        "official_num_images": NUM_IMAGES,
        "metrics": {
            "top1": 100 * int(hits.top1.sum()) / num_images,
            "top5": 100 * int(hits.top5.sum()) / num_images,
        },
        "hits": {"top1": int(hits.top1.sum()), "top5": int(hits.top5.sum())},
        "seconds": round(seconds, 2),
        "images_per_second": round(num_images / seconds, 2),
    }
    print(
        f"{count_of(num_images, NUM_IMAGES)} images of {dataset.uri}, templates {summary['templates']}, {precision}: "
        f"top-1 {summary['metrics']['top1']:.2f} %, top-5 {summary['metrics']['top5']:.2f} %"
    )
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "per_class.csv").write_text(_table(dataset, hits), encoding="utf-8")
    # Written last: a folder with metrics.json is complete.
    (out / "metrics.json").write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return summary


class Classifier:
    """Holds a model, embeds classes, and classifies blocks of images."""

    def __init__(self, model: GroupViT, *, num_threads: int, device: str = "cpu") -> None:
        torch.set_num_threads(num_threads)
        self._model = model.to(device).eval()
        self._tokenizer = Tokenizer()
        self.device = torch.device(device)

    def embed(self, templates: Sequence[str], classes: Sequence[str]) -> NDArray[np.float32]:
        """Returns the class embeddings, of unit length, [C, D]."""
        return class_embeddings(self._model, self._tokenizer, classes, templates).cpu().numpy()

    @torch.inference_mode()
    def count_hits(self, task: Task, block: Any) -> Hits:
        """Classifies a block in batches. Raises ValueError for an image that cannot be read."""
        num_classes = len(task.embeddings)
        embeddings = torch.tensor(task.embeddings, device=self.device)
        size = self._model.config.image.image_size
        hits = Hits.none(num_classes)
        for images in batched(task.dataset.read(block), task.batch_size):
            pixels = torch.stack([to_tensor(center_crop(item.image, size)) for item in images]).to(self.device)
            labels = np.array([item.label for item in images])
            with autocast(self.device, task.precision):
                embedded = self._model.encode_image(pixels).embedding
            best = classify(embedded, embeddings, self._model.logit_scale).topk(TOP).indices.cpu().numpy()
            found = best == labels[:, None]
            batch = Hits(
                images=np.bincount(labels, minlength=num_classes),
                top1=np.bincount(labels[found[:, 0]], minlength=num_classes),
                top5=np.bincount(labels[found.any(axis=1)], minlength=num_classes),
            )
            hits = hits.plus(batch)
        return hits


def _count_hits(config: EvaluateConfig, dataset: ImageNetDataset, model: GroupViT) -> tuple[Hits, Precision]:
    names = dataset.classes
    parts = [names[start : start + CLASSES_PER_TASK] for start in range(0, len(names), CLASSES_PER_TASK)]
    resources = {"cpus_per_worker": config.cpus_per_worker, "gpus_per_worker": config.gpus_per_worker}
    with model_workers(Classifier, model, config.num_workers, **resources) as workers:
        embedded = dict(workers.each(Classifier.embed, TEMPLATE_SETS[config.templates or DEFAULT_TEMPLATES], parts))
        embeddings = np.concatenate([embedded[index] for index in range(len(parts))])
        precision = resolved_precision(workers, config.precision)
        task = Task(
            dataset=dataset,
            embeddings=embeddings,
            batch_size=config.batch_size or DEFAULT_BATCH_SIZE,
            precision=precision,
        )
        total = Hits.none(len(names))
        with ProgressLine("imagenet: classified", len(dataset.labels), "images") as progress:
            for _, hits in workers.each(Classifier.count_hits, task, dataset.blocks()):
                total = total.plus(hits)
                progress.add(int(hits.images.sum()))
    return total, precision


def _table(dataset: ImageNetDataset, hits: Hits) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["label", "class", "images", "top1_hits", "top5_hits"])
    columns = (hits.images.tolist(), hits.top1.tolist(), hits.top5.tolist())
    writer.writerows(zip(range(len(dataset.classes)), dataset.classes, *columns, strict=True))
    return text.getvalue()
