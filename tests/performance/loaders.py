"""What ingest is measured against: the same work per sample in webdataset + torch DataLoader, and in SPDL."""

import io
import itertools
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from spdl.pipeline import PipelineBuilder

from groupvit.captions import draw_prompts
from groupvit.tokenizer import Tokenizer
from groupvit.transforms import AugmentOn, TrainTransform

NUM_PROMPTS = 3
Texts = list[str]


class MakeBatch:
    """Samples → a batch: the work that all systems do. One process loads the tokeniser once."""

    def __init__(self, augment_on: AugmentOn) -> None:
        torch.set_num_threads(1)
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        self.transform = TrainTransform(image_size=224, augment_on=augment_on)
        self.tokenize, self.rng = Tokenizer(), np.random.default_rng(0)

    def sample(self, sample: dict[str, Any]) -> tuple[np.ndarray, Texts]:
        pixels = self.transform(sample["image"], int(self.rng.integers(2**63))).image
        [caption], [nouns] = sample["captions"], sample["nouns"]
        return pixels, [caption, *draw_prompts(nouns, caption, NUM_PROMPTS, self.rng)[0]]

    def collate(self, samples: Sequence[tuple[np.ndarray, Texts]]) -> dict[str, np.ndarray]:
        images, texts = zip(*samples, strict=True)
        return {"image": np.stack(images), "token_ids": self.tokenize(list(itertools.chain.from_iterable(texts)))}


class WebdatasetSamples:
    """Reads a tar's members as samples; the state of a loader's process, made there at first use."""

    def __init__(self, augment_on: AugmentOn) -> None:
        self.augment_on: AugmentOn = augment_on
        self.make: MakeBatch | None = None

    def sample(self, entry: dict[str, Any]) -> tuple[np.ndarray, Texts]:
        self.make = self.make or MakeBatch(self.augment_on)
        return self.make.sample({"image": entry["jpg"], **json.loads(entry["json"])})

    def collate(self, samples: list[tuple[np.ndarray, Texts]]) -> dict[str, np.ndarray]:
        assert self.make is not None
        return self.make.collate(samples)


def webdataset_batches(tars: list[str], num_processes: int, batch_size: int, augment_on: AugmentOn) -> Iterator[Any]:
    """One process of a DataLoader for each tar."""
    work = WebdatasetSamples(augment_on)
    pipeline = (
        webdataset.WebDataset(tars, resampled=True, shardshuffle=False)
        .map(work.sample)
        .batched(batch_size, collation_fn=work.collate)
    )
    return iter(torch.utils.data.DataLoader(pipeline, batch_size=None, num_workers=num_processes))


def spdl_batches(tars: list[str], num_threads: int, batch_size: int, augment_on: AugmentOn) -> Iterator[Any]:
    """Threads of this process, which is how SPDL loads; decoding and augmenting release Python's lock."""
    make = MakeBatch(augment_on)
    pipeline = (
        PipelineBuilder()
        .add_source(_endless_samples(tars))
        .pipe(make.sample, concurrency=num_threads)
        .aggregate(batch_size)
        .pipe(make.collate)
        .add_sink(2)
        .build(num_threads=num_threads)
    )
    with pipeline.auto_stop():
        yield from pipeline


def _endless_samples(tars: list[str]) -> Iterator[dict[str, Any]]:
    for path in itertools.cycle(tars):
        with tarfile.open(path) as tar:
            members = iter(tar)
            for image, texts in zip(members, members, strict=True):
                contents = [tar.extractfile(member) for member in (image, texts)]
                jpeg, text = (file.read() for file in contents if file is not None)
                yield {"image": jpeg, **json.loads(text)}


def write_tars(samples: list[dict[str, Any]], folder: Path, num_tars: int) -> list[str]:
    """Write samples as webdataset's shards, a JPEG and a JSON file for each."""
    paths = [str(folder / f"{index}.tar") for index in range(num_tars)]
    for index, path in enumerate(paths):
        with tarfile.open(path, "w") as tar:
            for sample in samples[index::num_tars]:
                text = json.dumps({"captions": sample["captions"], "nouns": sample["nouns"]}).encode()
                for extension, content in (("jpg", sample["image"]), ("json", text)):
                    member = tarfile.TarInfo(f"{sample['sample_id']}.{extension}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return paths
