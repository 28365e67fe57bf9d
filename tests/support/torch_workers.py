"""Runs a function on several real processes joined by gloo, for the tests of everything that crosses workers."""

import multiprocessing
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

# To import torch takes seconds. The process of which all workers are forked has done it, and holds no threads.
multiprocessing.set_forkserver_preload(["torch", "torch.distributed", "tests.support.lone_worker"])


def run_workers(function: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
    """`function(group, *args)` on every rank, results in rank order. Function, args and results must be picklable."""
    with tempfile.TemporaryDirectory() as folder:
        start_processes(_worker, (world_size, folder, function, args), nprocs=world_size, start_method="forkserver")
        return [torch.load(Path(folder) / f"result_{rank}.pt", weights_only=True) for rank in range(world_size)]


def _worker(rank: int, world_size: int, folder: str, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    try:
        torch.save(function(dist.group.WORLD, *args), Path(folder) / f"result_{rank}.pt")
    finally:
        dist.destroy_process_group()
