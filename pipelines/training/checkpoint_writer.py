"""Writes checkpoints beside the training. A step waits only until the tensors are copied to the host's memory."""

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from groupvit import checkpoint
from groupvit.model import GroupViT
from pipelines.experiments.config import ExperimentConfig
from pipelines.runs.evaluations import read_record
from pipelines.runs.folder import RunFolder

logger = logging.getLogger(__name__)


class CheckpointWriter:
    """A thread that writes, hashes and publishes the checkpoints of a run, one after the other.

    At most one checkpoint is on its way: if the one before is not published yet, `save` waits for it. Old checkpoints
    are deleted when the new one is published. An error of the thread is raised by the next call of `save`, `check` or
    `wait`, and at the end of the context, which waits as well.
    """

    def __init__(self, run: RunFolder, config: ExperimentConfig) -> None:
        self._run, self._config = run, config
        self._copies = HostCopies()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._written: Future[None] | None = None

    def save(
        self,
        step: int,
        model: GroupViT,
        optimizer: torch.optim.Optimizer,
        average: GroupViT | None,
        state: dict[str, Any],
    ) -> None:
        """Copies a checkpoint, and has it published. With averaging, its model is the average, and optimizer.pt also
        holds the raw weights. `state` must not be changed afterwards."""
        self.wait()
        published, optimizer_state = model, {"optimizer": optimizer.state_dict()}
        if average is not None:
            published, optimizer_state = average, {**optimizer_state, "raw_model": model.state_dict()}
        weights, optimizer_state = self._copies.copy([published.state_dict(), optimizer_state])
        wait_for_copies = self._copies.recorded()

        def write(folder: Path) -> None:
            checkpoint.write(folder, published.config, weights, state=state, optimizer_state=optimizer_state)

        def publish() -> None:
            wait_for_copies()
            self._run.save_checkpoint(step, write)
            self._delete_old()

        self._written = self._pool.submit(publish)

    def check(self) -> None:
        """Raises the error of the last checkpoint, if it has failed. Does not wait."""
        if self._written is not None and self._written.done():
            self._written.result()

    def wait(self) -> None:
        """Waits until the last checkpoint is published. Raises its error."""
        if self._written is not None:
            self._written.result()

    def _delete_old(self) -> None:
        training, evaluation = self._config.training, self._config.evaluation
        if training.keep_checkpoints is None:
            return
        kept: frozenset[int] = frozenset()
        if evaluation.every_n_steps is not None:
            steps = self._run.checkpoint_steps()
            kept = read_record(self._run).kept_steps(steps, evaluation.every_n_steps, training.num_steps)
        self._run.delete_old_checkpoints(training.keep_checkpoints, kept)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self.wait()
        except Exception as failure:
            if error is None:
                raise
            if failure is not error:
                logger.warning("the last checkpoint was not written: %s", failure)
        finally:
            self._pool.shutdown()


class HostCopies:
    """Copies of tensors in the host's memory. Each call of `copy` overwrites those of the call before."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[Any, ...], torch.Tensor] = {}
        self._device: torch.device | None = None

    @torch.no_grad()
    def copy(self, value: Any, place: tuple[Any, ...] = ()) -> Any:
        """Returns nested dictionaries and lists with copies of their tensors. Copies from a GPU go on afterwards:
        see `recorded`."""
        if isinstance(value, torch.Tensor):
            buffer = self._buffers.get(place)
            if buffer is None or buffer.shape != value.shape or buffer.dtype != value.dtype:
                buffer = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
                self._buffers[place] = buffer
            if value.is_cuda:
                self._device = value.device
            return buffer.copy_(value, non_blocking=True)
        if isinstance(value, Mapping):
            return {key: self.copy(entry, (*place, key)) for key, entry in value.items()}
        if isinstance(value, list):
            return [self.copy(entry, (*place, index)) for index, entry in enumerate(value)]
        return value

    def recorded(self) -> Callable[[], object]:
        """Returns a function that waits for the copies made so far. It may be called in another thread."""
        if self._device is None:
            return lambda: None
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        return event.synchronize
