"""What each usual mistake costs in mIoU, and which of them explains a number that someone else got.

    groupvit evaluate --checkpoint C --benchmark voc21 --root DIR --explain
    groupvit evaluate --checkpoint C --benchmark voc21 --root DIR --explain --explain-images None --explain-found 42.8

Every mistake is evaluated alone, on the same images as the protocol, so that their numbers are paired: the images that
were drawn change a cost much less than they change an mIoU.
"""

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from groupvit.checkpoint import load, load_state
from groupvit.config import SegmentationConfig
from pipelines.benchmarks.catalogue import BENCHMARKS
from pipelines.benchmarks.given_words import changed_words, with_words
from pipelines.console.progress import ProgressLine
from pipelines.console.tables import aligned, count_of, number
from pipelines.evaluation.config import EvaluateConfig
from pipelines.evaluation.methods import (
    check_given_words,
    described,
    evenly_spaced,
    methods_for,
    protocol_for,
    segmentation_for,
)
from pipelines.evaluation.mistakes import Mistake, mistakes_of
from pipelines.evaluation.nearest import nearest
from pipelines.evaluation.report import check_out
from pipelines.evaluation.scoring import Scorer
from pipelines.evaluation.variants import Variant, VariantTask, count_variants
from pipelines.evaluation.workers import ModelWorkers, model_workers, resolved_precision
from pipelines.runs.checkpoints import local_checkpoint

FILE = "explanation.json"
IMAGES_PER_BLOCK = 4
"""Small, because an image is encoded a dozen times."""
NUM_RESAMPLES = 1000
"""Resamples of the images for the standard errors (bootstrap)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """What a mistake costs on the sample."""

    name: str
    right: str
    mistaken: str
    miou: float
    """In percent."""
    cost: float
    """mIoU of the protocol minus `miou`, in points. Negative: the mistake raises the number."""
    standard_error: float
    """Of the cost, in points, over the choice of images."""


def explain(config: EvaluateConfig, segmentation: SegmentationConfig | None = None) -> dict[str, Any]:
    """Evaluates a sample of the benchmark by its protocol and with each mistake, prints a table, and writes and returns
    its content.

    `segmentation` replaces the protocol. Raises ValueError for invalid arguments or data.
    """
    check_out(config.out)
    dataset = with_words(BENCHMARKS[config.benchmark](config.root), config.words)
    with local_checkpoint(config.checkpoint) as folder:
        model, state = load(folder), load_state(folder)
    check_given_words(config, model)
    started = time.monotonic()
    every = evenly_spaced(dataset, config.max_scenes)
    sample = _drawn(every, config.explain_images, config.explain_seed)
    resources = {"cpus_per_worker": config.cpus_per_worker, "gpus_per_worker": config.gpus_per_worker}
    with model_workers(Scorer, model, config.num_workers, **resources) as workers:
        precision = resolved_precision(workers, config.precision)
        chosen = segmentation or segmentation_for(config, dataset, model, state)
        rules = methods_for(config, dataset, chosen, workers, precision, show=True)[0].segmentation
        right = Variant(segmentation=rules, words=dataset.words)
        mistakes = mistakes_of(right, dataset, model.config.image)
        task = VariantTask(
            dataset=dataset,
            variants=(right, *(mistake.variant for mistake in mistakes)),
            batch_size=config.batch_size,
            precision=precision,
        )
        counts = _counted(workers, task, sample)
    miou, costs = _costs(
        task, mistakes, counts, [dataset.part_of_scene[index] for index in sample], config.explain_seed
    )
    summary: dict[str, Any] = {
        "checkpoint": config.checkpoint,
        "step": int(state.get("step") or 0),
        "benchmark": dataset.benchmark,
        "root": config.root,
        "data_digest": dataset.digest,
        "settings": described(protocol_for(config, dataset), rules, precision, changed_words(dataset, config.words)),
        "num_images": len(sample),
        "of_num_images": len(every),
        "seed": config.explain_seed,
        "miou": miou,
        "mistakes": [dataclasses.asdict(cost) for cost in costs],
        "seconds": round(time.monotonic() - started, 2),
    }
    if config.explain_found is not None:
        summary["found"] = nearest(
            miou,
            {cost.name: (cost.cost, cost.standard_error) for cost in costs},
            found=config.explain_found,
            expected=config.explain_expected,
            num_images=len(sample),
            num_all=len(every),
        )
    print(table(summary))
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / FILE).write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return summary


def table(summary: Mapping[str, Any]) -> str:
    """Formats the costs, the largest first, and what is said of the number found."""
    images = count_of(summary["num_images"], summary["of_num_images"])
    rows = [
        [
            *(row[key] for key in ("name", "right", "mistaken")),
            number(row["miou"]),
            f"{row['cost']:+.2f}",
            number(row["standard_error"]),
        ]
        for row in summary["mistakes"]
    ]
    lines = [
        f"{summary['benchmark']}: {images} images of {summary['root']} in {summary['seconds']:.1f} s",
        summary["settings"],
        f"mIoU by the protocol: {summary['miou']:.2f}",
        "",
        *aligned(["mistake", "right", "mistaken", "mIoU", "cost", "+-"], rows),
        "",
        "cost: points of mIoU lost by this mistake alone; +-: its standard error over the choice of images",
    ]
    return "\n".join([*lines, *(summary["found"]["says"] if "found" in summary else [])])


def _drawn(every: Sequence[int], count: int | None, seed: int) -> list[int]:
    """Returns `count` of the images, drawn at random, in ascending order. None, or too many: all."""
    if count is None or count >= len(every):
        return list(every)
    return sorted(np.random.default_rng(seed).choice(every, count, replace=False).tolist())


def _counted(workers: ModelWorkers, task: VariantTask, sample: Sequence[int]) -> NDArray[np.int64]:
    """Returns the counts of all variants on all images of the sample: [N, V, 3, C]."""
    counts: dict[int, NDArray[np.int64]] = {}
    blocks = task.dataset.blocks(sample, IMAGES_PER_BLOCK)
    with ProgressLine(f"{len(task.variants) - 1} mistakes: tried on", len(sample), "images") as progress:
        for _, of_block in workers.each(count_variants, task, blocks):
            counts |= of_block
            progress.add(len(of_block))
    return np.stack([counts[index] for index in sample])


def _costs(
    task: VariantTask, mistakes: Sequence[Mistake], counts: NDArray[np.int64], parts: Sequence[str], seed: int
) -> tuple[float, list[Cost]]:
    """Returns the mIoU of the protocol in percent, and the costs, the largest first. ValueError without any label."""
    of_parts = [np.flatnonzero(np.array(parts) == part) for part in dict.fromkeys(parts)]
    rng = np.random.default_rng(seed)
    resamples = [
        rng.multinomial(len(of_part), np.full(len(of_part), 1 / len(of_part)), NUM_RESAMPLES) for of_part in of_parts
    ]
    once = [np.ones((1, len(of_part))) for of_part in of_parts]

    def mious(place: int, times: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
        """In percent, the mean over the parts of the data set: [R]."""
        average = task.variants[place].average
        values = [average(counts[of_part, place], each) for of_part, each in zip(of_parts, times, strict=True)]
        return 100 * np.mean(values, axis=0)

    miou, resampled = float(mious(0, once)[0]), mious(0, resamples)
    if np.isnan(miou):
        raise ValueError(f"{task.dataset.uri}: all pixels of the sample are ignored: give more explain_images")
    costs = []
    for place, mistake in enumerate(mistakes, start=1):
        mistaken = float(mious(place, once)[0])
        if np.isnan(mistaken):  # it has no class to average over
            continue
        spread = float(np.nanstd(resampled - mious(place, resamples)))
        costs.append(
            Cost(
                name=mistake.name,
                right=mistake.right,
                mistaken=mistake.mistaken,
                miou=mistaken,
                cost=miou - mistaken,
                standard_error=spread,
            )
        )
    return miou, sorted(costs, key=lambda cost: -cost.cost)
