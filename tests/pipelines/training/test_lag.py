"""Two processes, of which one computes longer."""

import time

import torch
import torch.distributed as dist

from pipelines.training.lag import Lag
from tests.support.torch_workers import run_workers


def measure(group: dist.ProcessGroup) -> dict[str, float]:
    time.sleep(0.2 * (1 - dist.get_rank(group)))  # laps are not of the same length
    lag = Lag(group, torch.device("cpu"))
    for _ in range(2):
        lag.start_step()
        time.sleep(dist.get_rank(group))
        lag.is_ready()
        dist.barrier(group)
    return lag.share()


def test_the_worker_that_computes_longest_is_named() -> None:
    first, second = run_workers(measure, 2)
    assert first == second and first["slowest_rank"] == 1
    assert 0.5 < first["slowest_rank_wait_share"] <= 1


def test_a_single_worker_waits_for_nobody() -> None:
    assert Lag(None, torch.device("cpu")).share() == {}
