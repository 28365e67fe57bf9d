"""Where am I: what the card, its copies and its matrix products do, and which attention each shape gets."""

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor

from groupvit.config import ModelConfig, Precision
from groupvit.precision import autocast, float32_products
from groupvit.text_encoder import arrange_texts
from groupvit.transformer import Block
from tests.gpu.card.context import Context
from tests.gpu.card.device import Device
from tests.gpu.card.material import make_slice

PACKAGES = ("numpy", "timm", "tokenizers", "transformers", "cv2", "pyarrow", "ray", "simplejpeg", "ftfy", "spacy")
PACKAGES = (*PACKAGES, "mlflow", "tyro", "pynvml", "safetensors", "torchvision", "psutil")
TIMES = 10
BYTES = 2**28


def where_am_i(context: Context) -> None:
    device = context.device
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    context.report.measured("packages that are not here", {"": ", ".join(missing) or "none"})
    context.report.row("copies", partial(_copies, context))
    for precision in get_args(Precision):
        context.report.row(f"matrix product in {precision}", partial(_product, context, precision))
    for name, block, inputs in attentions(device, context.sizes.model, context.sizes.middle_batch):
        context.report.row(name, partial(_attention, context, name, block, inputs))


def _copies(context: Context) -> None:
    device = context.device
    size = BYTES if device.is_gpu else BYTES // 64
    pageable = torch.ones(size, dtype=torch.uint8)
    pinned = pageable.pin_memory() if device.is_gpu else pageable
    there = pageable.to(device.torch)
    copies: dict[str, Callable[[], Any]] = {
        "from pageable memory, GB/s": lambda: there.copy_(pageable),
        "from pinned memory, GB/s": lambda: there.copy_(pinned, non_blocking=True),
        "to pinned memory, GB/s": lambda: pinned.copy_(there, non_blocking=True),
        "on the device, GB/s read and written": lambda: there.clone(),
    }
    values: dict[str, float | str | None] = {}
    for name, copy in copies.items():
        copy()
        seconds = device.seconds(copy, times=TIMES)
        values[name] = (2 if "device" in name else 1) * size / seconds / 1e9
    context.report.measured("copies", values)


def _product(context: Context, precision: Precision) -> None:
    side = context.sizes.product
    matrix = torch.randn(side, side, device=context.device.torch)
    matrix = matrix.bfloat16() if precision == "bfloat16" else matrix
    with float32_products(context.device.torch, precision):
        for _ in range(3):
            torch.matmul(matrix, matrix)
        seconds = context.device.seconds(lambda: matrix @ matrix, times=TIMES)
    context.report.measured(f"matrix product in {precision}", {"side": side, "TFLOP/s": 2 * side**3 / seconds / 1e12})


def attentions(
    device: Device, config: ModelConfig, batch: int
) -> list[tuple[str, Block, Callable[[], tuple[Tensor, Tensor | None]]]]:
    """Blocks of the model, each with the input and the mask of a batch in training."""
    image, text = config.image, config.text
    tokens, found = image.grid_size**2, []
    for stage, (heads, groups) in enumerate(zip(image.num_heads, image.num_group_tokens, strict=True)):
        shape = (batch, tokens + groups, image.width)
        name = f"attention of image stage {stage + 1}, {batch} x {heads} heads x {shape[1]} tokens"
        found.append((name, Block(image.width, heads), partial(_input, device, shape)))
        tokens = image.num_output_groups[stage] if stage < len(image.num_output_groups) else tokens
    for which in ("texts", "other texts"):
        item = make_slice(batch, 3, config, seed=len(found))
        texts = arrange_texts(torch.from_numpy(item["token_ids"]).long().flatten(0, 1), text)
        rows, length = texts.token_ids.shape
        mask = texts.places.mask.to(device.torch)
        name = f"attention of {which}, {rows} rows x {text.num_heads} heads x {length} tokens"
        found.append(
            (name, Block(text.width, text.num_heads), partial(_input, device, (rows, length, text.width), mask))
        )
    return found


def _input(device: Device, shape: tuple[int, ...], mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    return torch.randn(shape, device=device.torch, requires_grad=True), mask


def _attention(context: Context, name: str, block: Block, inputs: Callable[[], tuple[Tensor, Tensor | None]]) -> None:
    """Milliseconds of the first and of later passes of a block, and the operations of its attention."""
    device = context.device
    block = block.to(device.torch).train()
    x, mask = inputs()

    def run() -> None:
        with autocast(device.torch, "bfloat16"):
            y = block(x, mask=mask)
        y.sum().backward()

    first = device.seconds(run)
    kernels = " ".join(device.operations(run, "attention")) or "none of torch's"
    later = device.seconds(run, times=TIMES)
    context.report.measured(name, {"kernels": kernels, "first ms": 1e3 * first, "later ms": 1e3 * later})
