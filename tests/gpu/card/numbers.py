"""Same numbers: the reference's outputs, gradients in double precision on the CPU, label maps of the CPU."""

import copy
import dataclasses
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from groupvit import interop
from groupvit.config import ImageEncoderConfig, LossConfig, ModelConfig, Precision, SegmentationConfig
from groupvit.model import GroupViT
from groupvit.noise import counter_noise
from groupvit.precision import autocast
from groupvit.segmentation import Words, label
from groupvit.training import Batch, compute_gradients
from groupvit.windows import encode_views
from tests.gpu.card.context import Context
from tests.gpu.card.device import Device
from tests.gpu.card.material import make_slice, noisy_images
from tests.gpu.card.step import batch_of, finished, new_model, noise_of_the_cpu, parts_of
from tests.support.golden import golden_encoder, golden_tensors, golden_weights, outputs

BOUNDS: dict[Precision, float] = {"float32": 1e-5, "tf32": 5e-3, "bfloat16": 5e-2}
"""Of the error of an output; see `golden_errors`."""
GRADIENT_BOUND = 1e-4
"""Of an error of the gradient, as a share of its largest entry."""
NOISE_BOUND = 1e-5
LABELS_BOUND = 0.01
"""Share of pixels that may have another label than on the CPU, in float32."""
LOSS = LossConfig(num_prompts=3)
NUM_CLASSES, GRADIENT_BATCH = 20, 8
COUNTED = "noise by counting has the CPU's bits"
FINISHED = "images are finished as on the CPU"


def same_numbers(context: Context) -> None:
    row = context.report.row
    for name in ("one_stage", "two_stage"):
        for precision in BOUNDS:
            row(f"reference's outputs, {name}, {precision}", partial(_golden, context, name, precision))
    for title, with_noise in (("gradients without noise", False), ("gradients with noise drawn on the CPU", True)):
        row(title, partial(_gradients, context, title, with_noise))
    row(COUNTED, partial(_counted_noise, context))
    row("4 micro-batches of 2 are 1 of 8", partial(_accumulation, context, "4 micro-batches of 2 are 1 of 8"))
    row(
        FINISHED,
        partial(_finishing, context, FINISHED),
    )
    for precision in ("float32", "bfloat16"):
        row(f"label maps in {precision}", partial(_label_maps, context, f"label maps in {precision}", precision))


def _golden(context: Context, name: str, precision: Precision) -> None:
    errors = golden_errors(context.device, name, precision)
    title = f"reference's outputs, {name}, {precision}"
    context.report.at_most(title, max(errors.values()), BOUNDS[precision], errors)


def _gradients(context: Context, title: str, with_noise: bool) -> None:
    found = gradient_errors(context.device, context.sizes.model, with_noise=with_noise)
    context.report.at_most(title, found.pop("largest"), GRADIENT_BOUND, found)


def _counted_noise(context: Context) -> None:
    """The noise of deterministic training."""
    found, expected = (
        counter_noise(7, where)((64, 1000)).cpu() for where in (context.device.torch, torch.device("cpu"))
    )
    context.report.at_most(COUNTED, (found != expected).double().mean().item(), 0.0)


def _accumulation(context: Context, title: str) -> None:
    context.report.at_most(title, accumulation_error(context.device, context.sizes.model), GRADIENT_BOUND)


def _finishing(context: Context, title: str) -> None:
    unequal, error = finishing_difference(context.device, context.sizes.model, context.sizes.middle_batch)
    values = {"share of other values": unequal, "largest error of the noise": error}
    context.report.check(title, unequal == 0 and error <= NOISE_BOUND, values, f"expected 0 and at most {NOISE_BOUND}")


def golden_errors(device: Device, name: str, precision: Precision) -> dict[str, float]:
    """The largest error of each output: in float32 as a share of 1 + the entry's size, as in `assert_near`; in other
    precisions of all entries together, as a share of their norm. Only in float32, the masks are compared, too."""
    tensors, encoder = golden_tensors(name), golden_encoder(name)
    model = interop.from_official(
        golden_weights(name), num_heads=tuple(encoder["num_heads"]), image_size=encoder["img_size"]
    )
    model = model.to(device.torch).eval()
    inputs = {key: x.to(device.torch) for key, x in tensors.items() if key.startswith(("input/", "seg/"))}
    with autocast(device.torch, precision):
        found = outputs(model, inputs)
    errors = {}
    for key, x in found.items():
        expected = tensors[key]
        difference = x.float().cpu() - expected
        if precision == "float32":
            errors[key] = (difference.abs() / (1 + expected.abs())).max().item()
        elif "hard_assignment" not in key and not key.startswith("seg/"):  # one that flips is an error of 1
            errors[key] = (difference.norm() / expected.norm()).item()
    return errors


def gradient_errors(device: Device, config: ModelConfig, *, with_noise: bool) -> dict[str, float]:
    """The gradient's error against double precision on the CPU: `largest` as a share of the largest entry, `loss`
    relative, `of a tensor` as the worst share of a tensor's norm."""
    on_cpu = Device("cpu")
    item = make_slice(GRADIENT_BATCH, LOSS.num_prompts, config, seed=1)
    model = new_model(on_cpu, config if with_noise else without_noise(config))
    there = copy.deepcopy(model).to(device.torch)
    expected_model = model.double()
    batch = batch_of(item, on_cpu, config)
    expected_batch = dataclasses.replace(batch, images=finished(batch).double())
    expected_loss, expected = _loss_and_gradients(expected_model, [expected_batch])
    loss, found = _loss_and_gradients(there, [batch_of(item, device, config)])
    largest = max(x.abs().max().item() for x in expected.values())
    norm = sum(x.square().sum().item() for x in expected.values()) ** 0.5
    differences = {name: found[name] - x for name, x in expected.items()}
    return {
        "largest": max(x.abs().max().item() for x in differences.values()) / largest,
        "loss": abs(loss - expected_loss) / abs(expected_loss),
        # Of some tensors the gradient is rounding alone, as of the keys' biases.
        "of a tensor": max(
            (differences[name].norm() / x.norm()).item() for name, x in expected.items() if x.norm() > 1e-4 * norm
        ),
    }


def accumulation_error(device: Device, config: ModelConfig) -> float:
    """The largest difference of the gradients as a share of the largest entry."""
    item = make_slice(GRADIENT_BATCH, LOSS.num_prompts, config, seed=2)
    model = new_model(device, without_noise(config))
    found = []
    for parts in (1, 4):
        found.append(_loss_and_gradients(model, [batch_of(part, device, config) for part in parts_of(item, parts)])[1])
        model.zero_grad(set_to_none=True)
    whole, parted = found
    largest = max(x.abs().max().item() for x in whole.values())
    return max((parted[name] - x).abs().max().item() for name, x in whole.items()) / largest


def without_noise(config: ModelConfig) -> ModelConfig:
    image: ImageEncoderConfig = dataclasses.replace(config.image, assignment="soft", stochastic_depth=0.0)
    return dataclasses.replace(config, image=image)


def _loss_and_gradients(model: GroupViT, micro_batches: Sequence[Batch]) -> tuple[float, dict[str, Tensor]]:
    """The loss, and the gradients in double precision on the CPU."""
    metrics = compute_gradients(model, micro_batches, loss=LOSS, seed=0, step=0, noise=noise_of_the_cpu)
    gradients = {name: p.grad.cpu().double() for name, p in model.named_parameters() if p.grad is not None}
    return metrics["loss"].item(), gradients


def finishing_difference(device: Device, config: ModelConfig, size: int) -> tuple[float, float]:
    """Of finished images beside the CPU's: the share of values that differ, and the largest error where noise is."""
    item = make_slice(size, 0, config, seed=3)
    found, expected = (finished(batch_of(item, where, config)).cpu() for where in (device, Device("cpu")))
    erased = torch.zeros_like(expected, dtype=torch.bool)
    for image, (top, left, height, width) in zip(erased, item["erase_box"].tolist(), strict=True):
        image[:, top : top + height, left : left + width] = True
    unequal = (found != expected)[~erased].double().mean().item()
    return unequal, (found - expected)[erased].abs().max().item()


def _label_maps(context: Context, title: str, precision: Precision) -> None:
    sizes = context.sizes
    images = noisy_images(2, sizes.image_size)
    unequal, labels = label_map_difference(context.device, sizes.model, images, sizes.window, precision)
    if precision == "float32":
        context.report.at_most(title, unequal, LABELS_BOUND, {"labels": labels})
    else:
        context.report.measured(title, {"share of other labels": unequal, "labels": labels})


def label_map_difference(
    device: Device, config: ModelConfig, images: Sequence[np.ndarray], window: int, precision: Precision
) -> tuple[float, int]:
    """Share of pixels with another label than on the CPU, and the number of labels there."""
    model = contrasting_model(config)
    protocol = SegmentationConfig(
        short_side=window, window=window, stride=window // 2, background_threshold=None, top_classes=None
    )
    classes = _classes_of_segments(model, images, protocol)
    expected = _segmented(model, images, classes, protocol, "float32")
    found = _segmented(model.to(device.torch), images, classes, protocol, precision)
    labels = len(np.unique(expected))
    assert labels > 1, "one label everywhere: nothing is compared"
    return float(np.mean([a != b for a, b in zip(found, expected, strict=True)])), labels


def contrasting_model(config: ModelConfig) -> GroupViT:
    """Larger weights in the tower than at the start of training, so that groups and classes differ."""
    model = new_model(Device("cpu"), config).eval()
    factor = 2 * (384 / config.image.width) ** 0.5  # 2 at full size; a narrow tower adds up less
    with torch.no_grad():
        for parameter in model.image_encoder.parameters():
            if parameter.dim() > 1:
                parameter.mul_(factor)
    return model


def _classes_of_segments(model: GroupViT, images: Sequence[np.ndarray], protocol: SegmentationConfig) -> Tensor:
    """Class embeddings in the directions of some segments, so that each of them finds a class of its own."""
    encoded = encode_views(model, images, protocol)
    segments = torch.cat([window.segments for views in encoded for view in views for window in view.windows])
    centred = F.normalize(segments - segments.mean(dim=0), dim=-1)
    return centred[torch.linspace(0, len(centred) - 1, NUM_CLASSES).long()]


def _segmented(
    model: GroupViT, images: Sequence[np.ndarray], classes: Tensor, protocol: SegmentationConfig, precision: Precision
) -> list[np.ndarray]:
    """Label maps, made on the model's device."""
    words = Words.of(model, classes.to(model.logit_scale.device), None, protocol)
    encoded = encode_views(model, images, protocol, precision=precision)
    sizes = [(image.shape[0], image.shape[1]) for image in images]
    return [label(views, words, size, protocol, (None,))[0] for views, size in zip(encoded, sizes, strict=True)]
