"""Slices with `ingest.augment_on` = device hold draws instead of augmented images."""

import dataclasses

import numpy as np
import pytest
import torch

from groupvit.device_augment import Augmentation, augment
from pipelines.experiments.catalogue import debug
from pipelines.experiments.config import DataConfig, ExperimentConfig, IngestConfig, TrainingConfig
from pipelines.ingest.plan import Slice, plan_ingest
from pipelines.ingest.slices import load_slices
from tests.support.dataset_folder import make_dataset


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ExperimentConfig:
    folder = tmp_path_factory.mktemp("source")
    make_dataset(folder, 60, corrupt={7})
    return dataclasses.replace(
        debug(), data=DataConfig(sources=(str(folder),), seed=3), training=TrainingConfig(global_batch_size=30)
    )


def slices_of(config: ExperimentConfig, ingest: IngestConfig) -> list[Slice]:
    return load_slices(plan_ingest(dataclasses.replace(config, ingest=ingest)), 0, 4)


@pytest.mark.parametrize(("augmentation", "color_jitter"), [("deit", 0.0), ("crop_flip", 0.2), ("crop_flip", 0.0)])
def test_the_device_makes_the_images_of_the_reading_process(
    config: ExperimentConfig, augmentation: str, color_jitter: float
) -> None:
    ingest = IngestConfig(slice_size=30, window_size=120, augmentation=augmentation, color_jitter=color_jitter)  # pyright: ignore
    on_cpu = slices_of(config, ingest)
    on_device = slices_of(config, dataclasses.replace(ingest, augment_on="device"))
    num_rounds = {("deit", 0.0): 2, ("crop_flip", 0.2): 3, ("crop_flip", 0.0): 0}[augmentation, color_jitter]
    for expected, drawn in zip(on_cpu, on_device, strict=True):
        columns = {name: (drawn[name].dtype.str[1:], drawn[name].shape) for name in set(drawn) - set(expected)}
        assert columns == {
            "flip": ("b1", (30,)),
            "operations": ("i1", (30, num_rounds)),
            "arguments": ("f4", (30, num_rounds)),
        }
        # What Ray carries: nothing without elements.
        carried = {name: column for name, column in drawn.items() if column.size}
        images = augment(torch.tensor(drawn["image"]), Augmentation.of(carried)).numpy()
        assert (images == expected["image"]).mean() > 0.999
        for name in set(expected) - {"image"}:
            assert np.array_equal(drawn[name], expected[name]), name
