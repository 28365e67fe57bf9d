"""Counts the memory of a training step and the bytes that workers exchange, without doing the step.

The code of the step runs on tensors that have a shape but no memory (torch's FakeTensor), as worker 0 of a group whose
collectives only have shapes. A ledger counts the bytes of the tensors that are alive, by what they are for, and keeps
the counts of the moment when the sum was largest. So whatever the step allocates is counted, and it takes seconds on a
laptop.

Not counted: what a kernel takes while it runs, the context and libraries of CUDA, fragmentation.
"""

import contextlib
import dataclasses
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from groupvit.config import Precision
from groupvit.image_encoder import ImageFeatures, ImageNoise
from groupvit.model import GroupViT
from groupvit.noise import Uniform, counter_noise
from groupvit.optim import build_optimizer
from groupvit.text_encoder import ArrangedTexts
from groupvit.training import Batch, Towers, train_step
from groupvit.transformer import fused_attention
from pipelines.experiments.config import ExperimentConfig
from pipelines.experiments.fixed import settled
from pipelines.training.batches import NUM_AHEAD

PARAMETERS, GRADIENTS, MOMENTS, AVERAGE = "parameters", "gradients", "optimiser's moments", "average of the weights"
INPUTS, EXCHANGE = "images and texts", "exchange between workers"
IMAGE_TOWER, TEXT_TOWER = "activations of the image tower", "activations of the text tower"
HEADS, BACKWARD = "projectors, logits and losses", "gradients of activations"
ITEMS = (
    *(PARAMETERS, GRADIENTS, MOMENTS, AVERAGE, INPUTS),
    *(IMAGE_TOWER, TEXT_TOWER, HEADS, BACKWARD, EXCHANGE),
)
"""What memory is counted by, in the order of a table."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepMemory:
    """Memory of one worker at the fullest moment of a step, and what the worker exchanges with the others in a step."""

    items: dict[str, int]
    """Bytes by item, in the order of `ITEMS`."""
    reduced_bytes: int
    """Bytes that are summed over the workers, where all of them get the sums."""
    gathered_bytes: int
    """Bytes that one worker gets when rows of all workers are gathered, and gives when their gradients are summed."""
    num_parameters: int

    @property
    def total(self) -> int:
        return sum(self.items.values())


class Ledger(TorchDispatchMode):
    """Counts the bytes of all tensors made in its context that are still alive, each storage once.

    Args:
        granularity: Bytes of which an allocator gives multiples.
    """

    def __init__(self, granularity: int = 1) -> None:
        super().__init__()
        self.item = PARAMETERS
        """What the next tensors are for, outside of a backward pass."""
        self.condition = False
        """Value of conditions on the content of tensors. In the initialisation of weights: none is out of bounds."""
        self.peak: Counter[str] = Counter()
        """Bytes by item when the sum was largest."""
        self.reduced_bytes = self.gathered_bytes = 0
        self._granularity = granularity
        self._alive: dict[int, tuple[str, int, weakref.ref[torch.UntypedStorage]]] = {}
        self._bytes: Counter[str] = Counter()
        self._total = self._largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return 1.0 if args[0].dtype.is_floating_point else int(self.condition)
        if func.namespace == "c10d":
            self._exchange(func.__name__, [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)])
        output = func(*args, **(kwargs or {}))
        backward = torch._C._current_graph_task_id() != -1
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor):
                self.add(leaf, BACKWARD if backward else self.item)
        return output

    @contextlib.contextmanager
    def counting(self, item: str) -> Iterator[None]:
        """Meanwhile, new tensors are for `item`."""
        before, self.item = self.item, item
        try:
            yield
        finally:
            self.item = before

    def add(self, tensor: Tensor, item: str) -> None:
        """Count a tensor, unless its storage is counted already."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return
        size = -(-storage.nbytes() // self._granularity) * self._granularity
        self._alive[key] = item, size, weakref.ref(storage, lambda _: self._drop(key))
        self._bytes[item] += size
        self._total += size
        if self._total > self._largest:
            self._largest, self.peak = self._total, self._bytes.copy()

    def move(self, tensor: Tensor | None, item: str) -> None:
        """Count a tensor for another item from now on."""
        key = -1 if tensor is None else tensor.untyped_storage()._cdata
        if key in self._alive:
            before, size, reference = self._alive[key]
            self._alive[key] = item, size, reference
            self._bytes[before] -= size
            self._bytes[item] += size

    def _drop(self, key: int) -> None:
        item, size, _ = self._alive.pop(key)
        self._bytes[item] -= size
        self._total -= size

    def _exchange(self, name: str, tensors: list[Tensor]) -> None:
        largest = max((tensor.nbytes for tensor in tensors), default=0)
        if name.startswith("allreduce"):
            self.reduced_bytes += largest
            for tensor in tensors:
                self.move(tensor, EXCHANGE)
        else:
            self.gathered_bytes += largest


def step_memory(config: ExperimentConfig, batch: Batch, precision: Precision, *, on_gpu: bool) -> StepMemory:
    """Returns the memory of a step of one worker, whose micro-batches all have the shapes of `batch`.

    This process must not be in a process group.
    """
    training = settled(config, None).training
    assert training.reduce_precision != "auto"
    num_micro_batches = -(-config.slices_per_step // training.min_workers)
    with _worker_0_of(training.min_workers) as group, FakeTensorMode(), fused_attention(on_gpu):
        ledger = Ledger(granularity=512 if on_gpu else 1)  # of CUDA's caching allocator
        with ledger:
            model = GroupViT(config.model).train()
            with ledger.counting(MOMENTS):
                optimizer = build_optimizer(model, config.optimizer)
                _make_moments(model, optimizer)
            with ledger.counting(AVERAGE):
                average = None if training.ema_decay is None else GroupViT(config.model)
            for parameter in model.parameters():
                parameter.register_post_accumulate_grad_hook(lambda own: ledger.move(own.grad, GRADIENTS))

            def micro_batches() -> Iterator[Batch]:
                for _ in range(num_micro_batches):
                    with ledger.counting(INPUTS):
                        inputs = batch.map(_without_data)
                    yield inputs

            with ledger.counting(INPUTS):
                ledger.condition = True  # in a step: all is finite
                ahead = [batch.map(_without_data) for _ in range(NUM_AHEAD + 1)]  # and one that waits for its place
            with ledger.counting(HEADS):
                train_step(
                    model,
                    optimizer,
                    micro_batches(),
                    loss=config.loss,
                    seed=training.seed,
                    step=0,
                    precision=precision,
                    reduce_precision=training.reduce_precision,
                    clip_grad_norm=config.optimizer.clip_grad_norm,
                    num_slices=config.slices_per_step,
                    noise=counter_noise if training.deterministic else _noise,
                    towers=_counted_towers(model, ledger, num_micro_batches),
                    group=group,
                )
            del ahead, average
    return StepMemory(
        items={item: ledger.peak[item] for item in ITEMS},
        reduced_bytes=ledger.reduced_bytes,
        gathered_bytes=ledger.gathered_bytes,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
    )


@contextlib.contextmanager
def _worker_0_of(num_workers: int) -> Iterator[dist.ProcessGroup | None]:
    """Provide a group of workers of which only this one exists. None for one worker."""
    if num_workers == 1:
        yield None
        return
    dist.init_process_group("fake", rank=0, world_size=num_workers)
    try:
        yield dist.group.WORLD
    finally:
        dist.destroy_process_group()


def _make_moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """The optimiser makes its moments at its first step."""
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _without_data(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype)


def _noise(seed: int, device: torch.device) -> Uniform:
    return lambda shape: torch.empty(tuple(shape), device=device)


def _counted_towers(model: GroupViT, ledger: Ledger, num_micro_batches: int) -> Towers:
    """The towers, whose activations count for them."""

    def image(images: Tensor, noise: ImageNoise) -> ImageFeatures:
        with ledger.counting(IMAGE_TOWER):
            return model.image_encoder(images, noise)

    def text(texts: ArrangedTexts) -> Tensor:
        with ledger.counting(TEXT_TOWER):
            return model.text_encoder(texts)

    return Towers(image=image, text=text)
