"""Which worker the others wait for."""

import time

import torch
import torch.distributed as dist


class Lag:
    """Measures how long this worker reads and computes in each step before its first message to the others.

    Compares it with theirs when metrics are logged. Seconds are those of the host: on GPUs, they show slow data and
    slow hosts, not slow GPUs.
    """

    def __init__(self, group: dist.ProcessGroup | None, device: torch.device) -> None:
        self._group, self._device = group, device
        self._lap_start = self._step_start = time.perf_counter()
        self._busy_seconds = 0.0

    def start_step(self) -> None:
        self._step_start = time.perf_counter()

    def is_ready(self) -> None:
        """Says that what comes next in the step needs the other workers."""
        self._busy_seconds += time.perf_counter() - self._step_start

    def share(self) -> dict[str, float]:
        """Returns metrics of the steps since the last call: the slowest rank, and for which share of the time the
        others waited for it, on average. A collective; empty for a single worker."""
        busy, seconds = self._busy_seconds, time.perf_counter() - self._lap_start
        self._busy_seconds, self._lap_start = 0.0, time.perf_counter()
        if self._group is None:
            return {}
        own = torch.tensor([busy, seconds], device=self._device)
        workers = [torch.empty_like(own) for _ in range(dist.get_world_size(self._group))]
        dist.all_gather(workers, own, group=self._group)
        # Of the time of the slowest itself: laps begin and end at slightly different times on each worker.
        *others, (most, seconds, slowest) = sorted((*worker.tolist(), rank) for rank, worker in enumerate(workers))
        waited = most - sum(value for value, *_ in others) / len(others)
        return {"slowest_rank": float(slowest), "slowest_rank_wait_share": waited / max(seconds, 1e-9)}
