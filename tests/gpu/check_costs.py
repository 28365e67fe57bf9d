"""How often the host waits for the device in training, by place. Who removes a wait lowers its number here."""

from collections.abc import Callable
from functools import partial

from groupvit.config import OptimizerConfig
from groupvit.optim import build_optimizer
from groupvit.training import compute_gradients, train_step
from tests.gpu.check_training import batches
from tests.support.pretend_cuda import Log
from tests.support.small_model import LOSSES, small_model


def expect_waits(log: Log, expected: dict[str, int]) -> None:
    """Compares the waits since the log was cleared."""
    found = {f"{event.place}: {event.kind}, {event.what}": n for event, n in log.of("sync", "copy").items()}
    wrong = {place: count for place, count in found.items() if count != expected.get(place)}
    gone = expected.keys() - found.keys()
    assert not wrong and not gone, f"waits whose number is not the expected one: {wrong}; gone: {gone}"


def of_slice(log: Log) -> None:
    batches("cuda", 1, LOSSES["paper"])
    expect_waits(log, {})


def of_gradients(log: Log, *, loss: str, parts: int) -> None:
    model, micro_batches = small_model().to("cuda").train(), batches("cuda", parts, LOSSES[loss])
    log.events.clear()
    compute_gradients(model, micro_batches, loss=LOSSES[loss], seed=0, step=0, precision="bfloat16")
    expect_waits(log, {})


def of_update(log: Log) -> None:
    model, micro_batches = small_model().to("cuda").train(), batches("cuda", 1, LOSSES["paper"])
    optimizer = build_optimizer(model, OptimizerConfig())
    log.events.clear()
    for step in range(2):  # the first makes the optimiser's state
        train_step(model, optimizer, micro_batches, loss=LOSSES["paper"], seed=0, step=step, clip_grad_norm=5.0)
    expect_waits(log, {})


CHECKS: dict[str, Callable[[Log], None]] = {
    "costs: a slice": of_slice,
    "costs: one micro-batch": partial(of_gradients, loss="paper", parts=1),
    "costs: two micro-batches": partial(of_gradients, loss="paper", parts=2),
    "costs: shared positives": partial(of_gradients, loss="shared positives", parts=1),
    "costs: mixture": partial(of_gradients, loss="mixture", parts=1),
    "costs: clipping and AdamW": of_update,
}
