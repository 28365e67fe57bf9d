"""Two processes, of which one computes longer."""

import time

import torch
import torch.distributed as dist

from pipelines.training.lag import Lag
from tests.support.torch_workers import run_workers


def measure(group: dist.ProcessGroup) -> dict[str, float]:
    lag = Lag(group, torch.device("cpu"))
    for _ in range(2):
        lag.start_step()
        time.sleep(dist.get_rank(group))
        lag.is_ready()
        dist.barrier(group)
    return lag.share()


def test_the_worker_that_computes_longest_is_named() -> None:
    found = run_workers(measure, 2)
    assert [values["slowest_rank"] for values in found] == [1, 1]
    assert all(0 < values["slowest_rank_wait_share"] <= 1 for values in found)


def test_a_single_worker_waits_for_nobody() -> None:
    assert Lag(None, torch.device("cpu")).share() == {}
