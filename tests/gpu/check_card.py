"""What `tests/gpu/check.py` does on a card, as far as a device that does not exist can tell: the numbers of part 1, and
the training steps of its speed, of all precisions and with several micro-batches.
"""

from collections.abc import Callable
from functools import partial
from typing import get_args

from groupvit.config import Precision
from tests.gpu.card.device import Device
from tests.gpu.card.material import make_slice, noisy_images
from tests.gpu.card.numbers import (
    BOUNDS,
    GRADIENT_BOUND,
    LABELS_BOUND,
    NOISE_BOUND,
    accumulation_error,
    finishing_difference,
    golden_errors,
    gradient_errors,
    label_map_difference,
)
from tests.gpu.card.sizes import REHEARSAL, TINY
from tests.gpu.card.step import batch_of, make_step, new_model, parts_of
from tests.support.pretend_cuda import Log, values

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")


def _golden(log: Log, *, precision: Precision) -> None:
    errors = golden_errors(Device("cuda"), "two_stage", precision)
    assert max(errors.values()) <= BOUNDS[precision], errors


def _gradients(log: Log) -> None:
    for with_noise in (False, True):
        assert gradient_errors(Device("cuda"), TINY, with_noise=with_noise)["largest"] <= GRADIENT_BOUND
    assert accumulation_error(Device("cuda"), TINY) <= GRADIENT_BOUND


def _finishing(log: Log) -> None:
    unequal, error = finishing_difference(Device("cuda"), TINY, 16)
    assert unequal == 0 and error <= NOISE_BOUND


def _label_maps(log: Log) -> None:
    images = noisy_images(1, REHEARSAL.image_size)
    unequal, labels = label_map_difference(Device("cuda"), TINY, images, REHEARSAL.window, "float32")
    assert unequal <= LABELS_BOUND and labels > 1


def _steps(log: Log, *, precision: Precision, parts: int) -> None:
    device = Device("cuda")
    step = make_step(device, new_model(device, TINY), precision)
    for num_prompts in (3, 0):
        pieces = parts_of(make_slice(8, num_prompts, TINY, seed=0), parts)
        metrics = step([batch_of(piece, device, TINY) for piece in pieces], num_prompts)
        assert values(metrics["loss"]).isfinite()


CHECKS: dict[str, Callable[[Log], None]] = {
    **{
        f"card: reference's outputs, {precision}": partial(_golden, precision=precision)
        for precision in ("float32", "bfloat16")
    },
    "card: gradients": _gradients,
    "card: images are finished": _finishing,
    "card: label maps": _label_maps,
    **{f"card: steps in {name}": partial(_steps, precision=name, parts=1) for name in get_args(Precision)},
    "card: steps of 4 micro-batches": partial(_steps, precision="bfloat16", parts=4),
}
