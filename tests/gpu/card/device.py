"""The device that is measured: all calls of torch that only a GPU answers are here."""

import gc
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

PEAK_BFLOAT16 = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "A10G": 70e12, "L40S": 362e12, "L4": 121e12}
"""Dense bfloat16 FLOP/s by the makers' data sheets, of cards whose name contains the key."""


class Device:
    """A GPU, or the CPU on which a rehearsal runs."""

    def __init__(self, name: str) -> None:
        self.torch = torch.device(name)
        self.is_gpu = self.torch.type == "cuda"

    @property
    def card(self) -> str:
        return torch.cuda.get_device_name() if self.is_gpu else "the CPU (a rehearsal, not a measurement)"

    @property
    def driver(self) -> str | None:
        if not self.is_gpu:
            return None
        try:
            from pipelines.training.gpu import driver_version

            return driver_version()
        except ImportError:  # pynvml
            return None

    @property
    def capability(self) -> str | None:
        return ".".join(map(str, torch.cuda.get_device_capability())) if self.is_gpu else None

    @property
    def memory_gib(self) -> float | None:
        return torch.cuda.get_device_properties(self.torch).total_memory / 2**30 if self.is_gpu else None

    @property
    def peak_flops(self) -> float | None:
        """None: not known for this card."""
        return next((peak for name, peak in PEAK_BFLOAT16.items() if name in self.card), None)

    def wait(self) -> None:
        """Waits until the device has done all its work."""
        if self.is_gpu:
            torch.cuda.synchronize()

    def seconds(self, run: Callable[[], Any], *, times: int = 1) -> float:
        """Seconds of one call, the mean of several, from an idle device to an idle device."""
        self.wait()
        start = time.perf_counter()
        for _ in range(times):
            run()
        self.wait()
        return (time.perf_counter() - start) / times

    def free_memory(self) -> None:
        """Returns the memory of dead tensors, and forgets the peak."""
        gc.collect()
        if self.is_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_gib(self) -> float | None:
        """Peak of the memory of tensors since `free_memory`."""
        return torch.cuda.max_memory_allocated() / 2**30 if self.is_gpu else None

    def kernels(self, run: Callable[[], Any]) -> tuple[float, int]:
        """Seconds that the device computes in `run`, and the number of kernels. On the CPU: of operations."""
        activity = ProfilerActivity.CUDA if self.is_gpu else ProfilerActivity.CPU
        with profile(activities=[activity], acc_events=True) as profiler:
            run()
            self.wait()
        totals = profiler.key_averages()
        time_of = "self_device_time_total" if self.is_gpu else "self_cpu_time_total"
        found = [(getattr(event, time_of), event.count) for event in totals]
        return sum(microseconds for microseconds, _ in found) / 1e6, sum(n for microseconds, n in found if microseconds)

    def operations(self, run: Callable[[], Any], containing: str) -> list[str]:
        """Names of the operations of torch in `run` whose name contains a word, without their namespace."""
        with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
            run()
            self.wait()
        return sorted({e.key.removeprefix("aten::") for e in profiler.key_averages() if containing in e.key})
