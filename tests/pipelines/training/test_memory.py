"""The predicted memory against what torch keeps for the backward pass, and against peaks measured on a GPU."""

import dataclasses
import json

import pytest
import torch

from groupvit.config import ImageEncoderConfig, LossConfig, ModelConfig, TextEncoderConfig
from groupvit.model import GroupViT
from groupvit.noise import generator_noise
from groupvit.precision import autocast
from pipelines.experiments.catalogue import demo
from pipelines.experiments.config import ExperimentConfig, TrainingConfig
from pipelines.training.memory import Numbers, fits, num_parameters, slice_sizes, step_bytes, tower_bytes
from tests.support.pages import ROOT
from tests.support.small_model import SMALL, small_model

CPU = torch.device("cpu")
GIB = 2**30
BFLOAT16 = Numbers.of("bfloat16", on_gpu=True)
MIDDLE = ModelConfig(
    image=ImageEncoderConfig(
        image_size=96,
        patch_size=8,
        width=128,
        depths=(3, 2),
        num_heads=(4, 4),
        num_group_tokens=(16, 8),
        num_output_groups=(16, 8),
    ),
    text=TextEncoderConfig(context_length=32, vocab_size=1000, width=96, depth=4, num_heads=3),
    embedding_dim=64,
    projector_width=256,
)
MODELS = {
    "small": SMALL,
    "middle": MIDDLE,
    "demo": demo().model,
    "recomputed": dataclasses.replace(MIDDLE, image=dataclasses.replace(MIDDLE.image, activation_checkpointing=True)),
    "soft, one stage": dataclasses.replace(
        MIDDLE,
        image=dataclasses.replace(
            MIDDLE.image, depths=(4,), num_heads=(4,), num_group_tokens=(8,), num_output_groups=(8,), assignment="soft"
        ),
    ),
}
NUM_TEXTS, TOKENS = 3, 10


def kept_bytes(model: GroupViT, batch: int, precision: str) -> int:
    """Bytes that autograd keeps for the backward pass of the towers, each storage once, without the parameters."""
    text = model.config.text
    ids = torch.randint(1, text.vocab_size - 1, (batch * NUM_TEXTS, text.context_length))
    ids[:, TOKENS - 1], ids[:, TOKENS:] = text.vocab_size - 1, 0
    images = torch.randn(batch, 3, model.config.image.image_size, model.config.image.image_size)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage  # held: its address is not given to another
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast(CPU, precision):  # pyright: ignore
        side = images.shape[-1] // model.config.image.patch_size
        noise = model.image_encoder.draw_noise(len(images), (side, side), generator_noise(0, torch.device("cpu")))
        features = model.image_encoder(images, noise)
        texts = model.text_encoder(ids)
    assert features.pooled.requires_grad and texts.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_the_towers_keep_what_is_predicted(name: str, precision: str) -> None:
    config = dataclasses.replace(MODELS[name], text=dataclasses.replace(MODELS[name].text, deduplicate=False))
    model = small_model(config).train()
    kept = (kept_bytes(model, 6, precision) - kept_bytes(model, 2, precision)) / 4  # what every batch keeps cancels
    predicted = tower_bytes(config, Numbers.of(precision, on_gpu=False), NUM_TEXTS * TOKENS)
    assert 0.95 * kept <= predicted <= 1.2 * kept


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_counted(name: str) -> None:
    true = sum(parameter.numel() for parameter in small_model(MODELS[name]).parameters())
    assert num_parameters(MODELS[name]) == pytest.approx(true, rel=0.1)  # biases and norms weigh in narrow models


def with_batch(global_batch_size: int, *, num_prompts: int = 3, num_workers: int = 1) -> ExperimentConfig:
    return ExperimentConfig(
        name="paper",
        loss=LossConfig(num_prompts=num_prompts),
        training=TrainingConfig(
            global_batch_size=global_batch_size, num_workers=num_workers, reduce_precision="float32"
        ),
    )


def test_peaks_of_a_gpu_are_predicted() -> None:
    """Of the paper's model in bfloat16, one micro-batch. Four batches lay on the GPU all the time."""
    speed = json.loads((ROOT / "docs/gpu/first_look.json").read_text())["speed"]
    for batch in (64, 256, 1024):
        for num_prompts in (0, 3):
            measured = speed[f"batch {batch} K {num_prompts} eager"]["peak_gib"]
            config = with_batch(batch, num_prompts=num_prompts)
            others = 3 * batch * 3 * 224 * 224 * 4
            predicted = (step_bytes(config, batch, BFLOAT16) + others) / GIB
            assert 0.95 * measured <= predicted <= 1.2 * measured, (batch, num_prompts)


def test_everything_that_takes_memory_counts() -> None:
    config = with_batch(1024, num_workers=2)
    base = step_bytes(config, 256, BFLOAT16)
    assert step_bytes(config, 128, BFLOAT16) < base < step_bytes(config, 512, BFLOAT16)
    assert step_bytes(config, 256, Numbers.of("float32", on_gpu=True)) > base
    image = dataclasses.replace(config.model.image, activation_checkpointing=True)
    recomputed = dataclasses.replace(config, model=dataclasses.replace(config.model, image=image))
    assert step_bytes(recomputed, 256, BFLOAT16) < 0.7 * base
    exact = dataclasses.replace(config, training=dataclasses.replace(config.training, reduce_precision="exact"))
    assert step_bytes(exact, 256, BFLOAT16) - base == 4 * num_parameters(config.model)
    averaged = dataclasses.replace(config, training=dataclasses.replace(config.training, ema_decay=0.999))
    assert step_bytes(averaged, 256, BFLOAT16) - base == 4 * num_parameters(config.model)
    assert step_bytes(with_batch(4096, num_workers=2), 256, BFLOAT16) > base  # images and logits of the batch
    segments = dataclasses.replace(config, loss=LossConfig(multi_label_match="segments"))
    assert step_bytes(segments, 256, BFLOAT16) > base
    padded = dataclasses.replace(config.model.text, pack=False)
    assert step_bytes(dataclasses.replace(config, model=ModelConfig(text=padded)), 256, BFLOAT16) > base


def test_slices_divide_a_batch_and_a_window_and_keep_workers_busy() -> None:
    assert slice_sizes(with_batch(4096, num_workers=4)) == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
    assert slice_sizes(with_batch(4096, num_workers=16))[-1] == 256
    assert slice_sizes(with_batch(4096, num_workers=3))[-1] == 128  # 32 slices: 11, 11 and 10
    config = with_batch(96, num_workers=2)
    assert slice_sizes(config) == [1, 2, 4, 8, 16]
    wide = dataclasses.replace(with_batch(8192), ingest=dataclasses.replace(config.ingest, window_size=4096))
    assert slice_sizes(wide)[-1] == 1024


def test_a_part_of_the_memory_stays_free() -> None:
    config = with_batch(256)
    needed = step_bytes(config, 256, BFLOAT16)
    assert fits(config, 256, 1.3 * needed, BFLOAT16)
    assert not fits(config, 256, 1.2 * needed, BFLOAT16)
