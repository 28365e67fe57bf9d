"""Resource use of this machine, as records for the tracker."""

import logging
import time
from pathlib import Path
from typing import Any

from pipelines.tracking.spool import Record

_DRIVER = Path("/dev/nvidiactl")
"""Exists where an NVIDIA driver runs."""

logger = logging.getLogger(__name__)


class SystemMetrics:
    """Measures CPU, memory, disk, network and GPU use with MLflow's own monitors, under MLflow's usual names."""

    def __init__(self, every_n_seconds: float | None):
        self._every = every_n_seconds
        self._next = time.monotonic()
        self._monitors: list[Any] | None = None

    def due(self) -> list[Record]:
        if self._every is None or time.monotonic() < self._next:
            return []
        self._next = time.monotonic() + self._every
        if self._monitors is None:
            self._monitors = self._make_monitors()
        values: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            values |= {f"system/{name}": value for name, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        now = time.time_ns() // 1_000_000
        # The step is the time in seconds: unlike a sample count, it keeps rising across restarts.
        return [{"metrics": values, "step": now // 1000, "time": now, "training": False}]

    def _make_monitors(self) -> list[Any]:
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        monitors: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        try:
            monitors.append(GPUMonitor())
        except (ImportError, RuntimeError) as error:
            logger.log(logging.WARNING if _DRIVER.exists() else logging.DEBUG, "tracking: no GPU metrics: %s", error)
        return monitors
