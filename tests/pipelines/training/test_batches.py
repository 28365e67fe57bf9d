"""Micro-batches made ahead in a thread: the order, errors, the end; and augmentation here or where images are read."""

import dataclasses
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from groupvit.training import Batch
from pipelines.experiments.catalogue import debug
from pipelines.experiments.config import DataConfig, IngestConfig, TrainingConfig
from pipelines.ingest.plan import Slice, plan_ingest
from pipelines.ingest.slices import load_slices
from pipelines.training.batches import THREAD_NAME, BatchesAhead, to_batch
from tests.support.dataset_folder import make_dataset
from tests.support.lone_worker import SLICE, slices
from tests.support.small_model import SMALL

CPU = torch.device("cpu")


def ahead(items: Iterator[Slice]) -> BatchesAhead:
    return BatchesAhead(items, CPU, SMALL.text)


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == THREAD_NAME]


def test_batches_come_in_order_with_what_is_recorded_of_them() -> None:
    batches = ahead(itertools.islice(slices(0, 1), 5))
    assert batches.peek() is batches.peek()
    found = list(batches)
    assert [item.samples["position"][0] for item in found] == [0, 4, 8, 12, 16]
    assert "image" not in found[0].samples
    for item, expected in zip(found, slices(0, 1), strict=False):
        torch.testing.assert_close(item.batch.token_ids, torch.tensor(expected["token_ids"], dtype=torch.int64))
    batches.close()
    assert not threads()


def test_an_error_of_the_data_comes_after_the_batches_before_it() -> None:
    def broken() -> Iterator[Slice]:
        yield from itertools.islice(slices(0, 1), 3)
        raise RuntimeError("the data ended before step 3 of 9")

    batches = ahead(broken())
    for _ in range(3):
        next(batches)
    with pytest.raises(RuntimeError, match="before step 3 of 9"):
        next(batches)
    batches.close()


def test_it_stays_few_batches_ahead_and_stops_when_it_is_closed() -> None:
    taken = []

    def counted() -> Iterator[Slice]:
        for item in slices(0, 1):  # endless
            taken.append(item["position"][0])
            yield item

    batches = ahead(counted())
    for _ in range(4):
        next(batches)
    assert len(taken) <= 4 + 4  # two wait, one is being put there, one is made
    batches.close()
    assert not threads()


def test_memory_of_a_slice_is_copied() -> None:
    [item] = itertools.islice(slices(0, 1), 1)
    item["image"].flags.writeable = False  # as Ray's is
    batch = to_batch(item, CPU, SMALL.text)
    assert not isinstance(batch.images, torch.Tensor)
    assert batch.images.pixels.data_ptr() != item["image"].ctypes.data
    assert len(batch) == SLICE


@pytest.mark.parametrize(("recipe", "jitter"), [("deit", 0.0), ("crop_flip", 0.4)])
def test_the_device_augments_as_the_reading_process_does(tmp_path: Path, recipe: Any, jitter: float) -> None:
    make_dataset(tmp_path / "data", 32, rows_per_group=32)

    def finished(augment_on: Any) -> tuple[torch.Tensor, Slice]:
        config = dataclasses.replace(
            debug(),
            data=DataConfig(sources=(str(tmp_path / "data"),), seed=3),
            ingest=IngestConfig(
                slice_size=32, window_size=32, augmentation=recipe, color_jitter=jitter, augment_on=augment_on
            ),
            training=TrainingConfig(num_steps=1, global_batch_size=32),
        )
        [item] = load_slices(plan_ingest(config), 0, 1)
        batch: Batch = to_batch(item, CPU, config.model.text)
        assert not isinstance(batch.images, torch.Tensor)
        return batch.images.finished(), item

    (here, item), (there, _) = finished("device"), finished("cpu")
    assert item["flip"].any()
    height, width = here.shape[-2:]
    rows, columns = np.mgrid[:height, :width]
    top, left, box_height, box_width = item["erase_box"].astype(int).T[..., None, None]
    erased = torch.from_numpy(
        (rows >= top) & (rows < top + box_height) & (columns >= left) & (columns < left + box_width)
    )
    assert erased.any() == (recipe == "deit")
    kept = ~erased[:, None].expand_as(here)
    one = 1.01 / 255 / 0.224  # a difference of 1 of 255, normalised
    assert float((here - there)[kept].abs().max()) < one
    assert float((here - there)[kept].abs().gt(1e-5).float().mean()) < 0.01
    assert not erased.any() or abs(float(here[~kept].std()) - 1) < 0.2
