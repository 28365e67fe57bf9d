"""Progress of a run: samples seen and substituted over all workers, speed, data wait, time left."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from pipelines.console.progress import duration
from pipelines.ingest.plan import Slice

_FEWEST_SAMPLES_FOR_A_RATE = 1000  # with fewer, a share of corrupt images means nothing


class RunStoppedError(ValueError):
    """The run cannot continue until the user fixes something. All workers raise it at the same step."""


class Totals:
    """Samples seen per source and images substituted, over all workers since step 0."""

    def __init__(self, num_sources: int, group: dist.ProcessGroup | None, device: torch.device) -> None:
        self._group, self._device = group, device
        self._shared = np.zeros(num_sources + 1, np.int64)
        self._own = np.zeros_like(self._shared)

    def add(self, slices: Sequence[Slice]) -> None:
        for item in slices:
            self._own[:-1] += np.bincount(item["source"], minlength=len(self._own) - 1)
            self._own[-1] += int(item["substituted"].sum())

    def share(self) -> None:
        """Sums over the workers, so that all of them have the same numbers and act alike. A collective."""
        own = torch.from_numpy(self._own.copy()).to(self._device)
        if self._group is not None:
            dist.all_reduce(own, group=self._group)
        self._shared += own.cpu().numpy()
        self._own[:] = 0

    @property
    def num_substituted(self) -> int:
        return int(self._shared[-1])

    def check(self, max_corrupt_fraction: float) -> None:
        num_seen = int(self._shared[:-1].sum())
        if self.num_substituted > max_corrupt_fraction * max(num_seen, _FEWEST_SAMPLES_FOR_A_RATE):
            raise RunStoppedError(
                f"{self.num_substituted} of {num_seen} images were corrupt, more than ingest.max_corrupt_fraction="
                f"{max_corrupt_fraction}: repair the data set, or allow more"
            )

    def state(self) -> dict[str, Any]:
        return {"samples_seen": self._shared[:-1].tolist(), "substituted_images": self.num_substituted}

    def load(self, state: Mapping[str, Any]) -> None:
        self._shared[:] = [*state["samples_seen"], state["substituted_images"]]


class Clock:
    """Speed, data wait and time left of a run that began at `first_step`."""

    def __init__(self, first_step: int, num_steps: int, global_batch_size: int, seconds_before: float) -> None:
        self._num_steps, self._batch, self._seconds_before = num_steps, global_batch_size, seconds_before
        self._start = self._lap_start = time.perf_counter()
        self._lap_step, self._lap_wait = first_step, 0.0
        self._phase, self._phase_start, self._step = "waiting for data", self._start, first_step
        self._first_batch_seconds: float | None = None
        self._values: dict[str, float] = {}

    def waiting(self) -> "Clock":
        return self

    def __enter__(self) -> None:
        self._phase, self._phase_start = "waiting for data", time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        now = time.perf_counter()
        if self._first_batch_seconds is None:  # start-up of the ingest: not part of the speed
            self._first_batch_seconds = now - self._start
            self._start = self._lap_start = now
        else:
            self._lap_wait += now - self._phase_start
        self._phase, self._phase_start = "computing", now

    @contextmanager
    def compiling(self) -> Iterator[None]:
        """Compiling the model: not part of the speed."""
        self._phase, self._phase_start = "compiling", time.perf_counter()
        yield
        self._phase, self._phase_start = "computing", time.perf_counter()
        self._start = self._lap_start = self._phase_start

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Waiting for the checkpoint before, and copying the next one: part of the speed."""
        self._phase, self._phase_start = "waiting for the last checkpoint to be written", time.perf_counter()
        yield
        self._phase, self._phase_start = "computing", time.perf_counter()

    def update(self, done: int) -> None:
        """Measures the steps since the last lap."""
        self._step = done
        seconds = max(time.perf_counter() - self._lap_start, 1e-9)
        steps = done - self._lap_step
        self._values = {
            "images_per_second": steps * self._batch / seconds,
            "data_wait_fraction": self._lap_wait / seconds,
            "eta_seconds": (self._num_steps - done) * seconds / max(steps, 1),
            "first_batch_seconds": self._first_batch_seconds or 0.0,
        }

    def lap(self) -> None:
        """Starts a new lap."""
        self._lap_start, self._lap_step, self._lap_wait = time.perf_counter(), self._step, 0.0

    def metrics(self) -> dict[str, float]:
        return dict(self._values)

    def activity(self) -> str:
        """Returns a line that says what the current step is doing, and for how long."""
        seconds = time.perf_counter() - self._phase_start
        return f"step {self._step + 1}/{self._num_steps}  {self._phase} for {duration(seconds)}"

    def line(self, done: int, loss: float) -> str:
        return (
            f"step {done}/{self._num_steps}  loss {loss:.4f}  {self._values['images_per_second']:.0f} images/s  "
            f"data wait {self._values['data_wait_fraction']:.0%}  ETA {duration(self._values['eta_seconds'])}"
        )

    def total_seconds(self) -> float:
        """Returns the seconds of training since step 0, without start-up. Steps repeated after a restart count once."""
        return self._seconds_before + time.perf_counter() - self._start
