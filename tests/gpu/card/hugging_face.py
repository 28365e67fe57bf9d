"""Hugging Face's GroupViT with our losses and optimiser, eager and compiled, beside ours."""

import itertools
from functools import partial

import torch
from torch import Tensor

from groupvit.losses import image_text_contrastive_loss, multi_label_contrastive_loss
from groupvit.precision import autocast
from tests.gpu.card.context import Context
from tests.gpu.card.report import SkippedError
from tests.gpu.card.speed import make_slices, rate, step_name
from tests.gpu.card.step import CLIP_GRAD_NORM, LEARNING_RATE, batch_of, finished

NUM_PROMPTS = 3
LARGEST_BATCH = 256


def hugging_face(context: Context) -> None:
    try:
        import transformers
    except ImportError as error:
        raise SkippedError(f"transformers cannot be imported: {error}") from None
    context.report.measured("transformers", {"version": transformers.__version__})
    sizes = [size for size in context.sizes.batches if size <= LARGEST_BATCH]
    for size, compiled in itertools.product(sizes, (False, True)):
        name = step_name(size, NUM_PROMPTS, context.sizes.precision, "compiled" if compiled else "eager")
        seconds = 45 if compiled and context.device.is_gpu else 8
        context.report.row(name, partial(_measure, context, name, size, compiled), seconds=seconds)


def _measure(context: Context, name: str, size: int, compiled: bool) -> None:
    from transformers import GroupViTConfig, GroupViTModel

    from tests.support.hugging_face import SMALL_HUGGING_FACE

    device, sizes = context.device, context.sizes
    if compiled and not device.is_gpu:
        raise SkippedError("a rehearsal compiles only ours")
    torch._dynamo.reset()
    device.free_memory()
    torch.manual_seed(0)
    config = GroupViTConfig() if device.is_gpu else GroupViTConfig(**SMALL_HUGGING_FACE)
    model = GroupViTModel(config).train()
    model.to(device.torch)  # pyright: ignore[reportArgumentType]
    encode_images, encode_texts = model.get_image_features, model.get_text_features
    if compiled:
        encode_images, encode_texts = torch.compile(encode_images), torch.compile(encode_texts)
    multi_label_logit_scale = torch.nn.Parameter(model.logit_scale.detach().clone())
    parameters = [*model.parameters(), multi_label_logit_scale]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.05, fused=True)

    def step(images: Tensor, token_ids: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(device.torch, sizes.precision):
            image = _tensor(encode_images(pixel_values=images))
            texts = _tensor(encode_texts(input_ids=token_ids.flatten(0, 1)))
        texts = texts.unflatten(0, token_ids.shape[:2])
        loss = image_text_contrastive_loss(image, texts[:, 0], model.logit_scale)
        loss = loss + multi_label_contrastive_loss(image, texts[:, 1:], multi_label_logit_scale)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP_GRAD_NORM)
        optimizer.step()

    batches = [batch_of(item, device, sizes.model) for item in make_slices(context, size, NUM_PROMPTS)]
    images = [finished(batch) for batch in batches]
    token_ids = [batch.token_ids.to(device.torch) for batch in batches]

    def run(number: int) -> None:
        index = number % len(batches)
        step(images[index], token_ids[index])

    try:
        values = rate(context, run, size)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # theirs to fix
        raise SkippedError(f"transformers or torch fails: {type(error).__name__}: {error}") from error
    context.report.measured(name, values)


def _tensor(features: object) -> Tensor:
    """transformers 5 wraps the projected features; 4 returns them as they are."""
    return features if isinstance(features, Tensor) else features.pooler_output  # type: ignore[attr-defined]
