"""A micro-batch of an experiment for a dry run: of the data if they can be read, else of texts of average length."""

import dataclasses
import time

import torch

from groupvit.config import LossConfig, TextEncoderConfig
from groupvit.finishing import ByteImages
from groupvit.text_encoder import arrange_texts
from groupvit.training import Batch
from pipelines.experiments.config import ExperimentConfig
from pipelines.ingest.plan import plan_ingest
from pipelines.ingest.slices import load_slices
from pipelines.training.batches import to_batch
from pipelines.training.memory import TOKENS_PER_CAPTION, TOKENS_PER_PROMPT


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleBatch:
    """A micro-batch, and how fast it was read."""

    batch: Batch
    images_per_second: float
    """Images that one core of this machine read, decoded and augmented per second."""


def read_batch(config: ExperimentConfig) -> SampleBatch:
    """Reads the first window of the run, as a reading process does. Raises as `load_slices` does."""
    plan = plan_ingest(config)
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as reading processes have
    try:
        [samples] = load_slices(plan, 0, 1)  # what the first call prepares is not measured
        start = time.perf_counter()
        load_slices(plan, 0, config.ingest.window_size // config.slice_size)
        seconds = time.perf_counter() - start
    finally:
        torch.set_num_threads(before)
    batch = to_batch(samples, torch.device("cpu"), config.model.text)
    return SampleBatch(batch=batch, images_per_second=config.ingest.window_size / seconds)


def assumed_batch(config: ExperimentConfig) -> Batch:
    """Returns a micro-batch whose texts are all different and of average length, but for one that fills the context."""
    size, side = config.slice_size, config.model.image.image_size
    token_ids = _token_ids(size, config.model.text, config.loss)
    return Batch(
        images=ByteImages(
            pixels=torch.empty(size, 3, side, side, dtype=torch.uint8),
            erased=torch.empty(0, dtype=torch.int64),
            noise=torch.empty(0),
        ),
        token_ids=token_ids,
        texts=arrange_texts(token_ids.flatten(0, 1), config.model.text),
        prompt_keys=torch.empty(size, config.loss.num_prompts, dtype=torch.int64),
    )


def _token_ids(size: int, text: TextEncoderConfig, loss: LossConfig) -> torch.Tensor:
    """Returns ids [size,1+K,T] int64 of texts that differ."""
    context, end = text.context_length, text.vocab_size - 1
    ids = torch.zeros(size, 1 + loss.num_prompts, context, dtype=torch.int64)
    numbers = torch.arange(ids[..., 0].numel()).view(ids.shape[:2])
    for column in range(ids.shape[1]):
        length = min(TOKENS_PER_PROMPT if column else TOKENS_PER_CAPTION, context)
        ids[:, column, : length - 1] = 1
        ids[:, column, length - 1] = end
        for place in range(min(3, length - 1)):  # the text's number, in digits
            ids[:, column, place] = 1 + numbers[:, column] // (end - 1) ** place % (end - 1)
    ids[0, 0, : context - 1], ids[0, 0, context - 1] = 1, end
    return ids
