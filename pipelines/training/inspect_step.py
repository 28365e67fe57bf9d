"""Shows what a run saw at a step: its samples as the model got them, and why the step was skipped, if it was.

    groupvit inspect-step runs/paper 118400

Samples and augmentation follow from the run's config and the step. So any step can be shown, long after it was done,
as long as the data set is there.
"""

import io
import sys
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import tyro
from PIL import Image

from groupvit.config import from_dict
from groupvit.tokenizer import Tokenizer
from pipelines import storage
from pipelines.console.progress import ProgressLine
from pipelines.dataset.page import Sample, document, gallery, table
from pipelines.experiments.amendments import texts_of
from pipelines.experiments.config import ExperimentConfig
from pipelines.experiments.fixed import amended, settled
from pipelines.ingest.plan import Slice, plan_ingest
from pipelines.ingest.slices import load_slices
from pipelines.ingest.uncurated import open_source
from pipelines.local.writable import check_file_writable
from pipelines.provenance import redact
from pipelines.runs.folder import RunFolder
from pipelines.runs.skipped import read_skipped
from pipelines.training.slice_size import with_recorded_slice_size

_ERASED = 127
"""Grey in place of erased rectangles, which the model sees as noise."""


@dataclass(frozen=True, kw_only=True)
class InspectStepConfig:
    """Configures which step to show."""

    run: Annotated[str, tyro.conf.Positional]
    """Folder of a run: a local path or s3:// URI."""
    step: Annotated[int, tyro.conf.Positional]
    """Number of the step, from 1, as in the progress lines and in MLflow."""
    out: str | None = None
    """Page to write: a local path or s3:// URI that ends in .html. None: step-NUMBER.html in this folder."""
    num_samples: int = 64
    """Largest number of samples on the page, evenly spaced. Each adds about 10 kB. All ids are in the result."""

    def __post_init__(self) -> None:
        if self.out is not None and not self.out.endswith(".html"):
            raise ValueError(f"out={self.out} is not a page: give a file name that ends in .html")
        if not 1 <= self.num_samples <= 4096:
            raise ValueError(f"num_samples={self.num_samples}: give 1 to 4096")


def inspect_step(config: InspectStepConfig) -> dict[str, Any]:
    """Writes the page. Returns the ids of the step's samples in order, and the record of a skipped step.

    Raises ValueError if the run has no such step, or if its data sets are not those of its start.
    """
    run = RunFolder(config.run)
    experiment = _experiment(run)
    num_steps = experiment.training.num_steps
    if not 1 <= config.step <= num_steps:
        raise ValueError(f"step={config.step} is not a step of {run.uri}: give 1 to {num_steps}")
    out = storage.absolute(config.out or f"step-{config.step}.html")
    check_file_writable(out, "out")

    plan, number = plan_ingest(experiment), experiment.slices_per_step
    first = (config.step - 1) * number
    slices: list[Slice] = []
    with ProgressLine("reading", number, "slices") as line:
        for index in range(first, first + number):
            slices += load_slices(plan, index, index + 1)
            line.add(1)
    record = read_skipped(run, config.step - 1)
    ids = [str(sample) for item in slices for sample in item["sample_id"]]
    facts = {
        "run": redact(run.uri),
        "samples": f"{len(ids):,}, at positions {slices[0]['position'][0]:,} to {slices[-1]['position'][-1]:,}",
        "skipped": "no" if record is None else "yes",
        **{name: "not finite" if value is None else f"{value:g}" for name, value in (record or {}).items()},
    }
    title = f"Step {config.step:,} of {experiment.run_name}"
    places = np.linspace(0, len(ids) - 1, min(config.num_samples, len(ids))).round().astype(int)
    samples = [_sample(slices[place // plan.slice_size], place % plan.slice_size) for place in places.tolist()]
    parts = [f"<h1>{title}</h1>", table("The step", facts), f"<h2>{len(samples):,} samples</h2>", gallery(samples)]
    storage.write_bytes(out, document(title, parts).encode())
    print(f"wrote {out}", file=sys.stderr)
    return {"run": run.uri, "step": config.step, "skipped": record, "sample_ids": ids, "page": out}


def _experiment(run: RunFolder) -> ExperimentConfig:
    """The config of a run as it was started, with what its start settled."""
    description = run.read_description()
    if description is None:
        raise ValueError(f"run={run.uri} is not a run: it has no run.json")
    config = settled(from_dict(ExperimentConfig, description["config"]), description["fixed"])
    config = amended(with_recorded_slice_size(config, description), texts_of(description))
    digests = [open_source(uri).digest for uri in config.data.sources]
    if digests != description["fixed"]["data.digests"]:
        raise ValueError(f"data.sources={', '.join(config.data.sources)} changed since the run began: the step is lost")
    return config


def _sample(item: Slice, place: int) -> Sample:
    pixels = np.array(item["image"][place])
    top, left, height, width = item["erase_box"][place]
    pixels[:, top : top + height, left : left + width] = _ERASED
    file = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(file, "JPEG", quality=90)
    replaced = ", in place of a corrupt one" if item["substituted"][place] else ""
    return Sample(
        thumbnail=file.getvalue(),
        captions=[Tokenizer().decode(ids) for ids in item["token_ids"][place]],
        nouns=None,
        width=pixels.shape[2],
        height=pixels.shape[1],
        source=f"{item['sample_id'][place]}, epoch {item['epoch'][place]}{replaced}",
        url=None,
    )
