"""GPU metrics from a stand-in of NVIDIA's library; the monitors are MLflow's own."""

import logging
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest

from pipelines.tracking import system_metrics
from pipelines.tracking.system_metrics import SystemMetrics


def test_the_use_of_each_gpu_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    library = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetMemoryInfo": lambda gpu: SimpleNamespace(used=20e9, total=80e9),
        "nvmlDeviceGetUtilizationRates": lambda gpu: SimpleNamespace(gpu=[97, 12][gpu]),
        "nvmlDeviceGetPowerUsage": lambda gpu: 350_000,
        "nvmlDeviceGetEnforcedPowerLimit": lambda gpu: 700_000,
    }
    for name, function in library.items():
        monkeypatch.setattr(pynvml, name, function)
    [record] = SystemMetrics(10.0).due()
    metrics = record["metrics"]
    assert metrics["system/gpu_0_utilization_percentage"] == 97 and metrics["system/gpu_1_utilization_percentage"] == 12
    assert metrics["system/gpu_0_memory_usage_megabytes"] == 20_000
    assert metrics["system/gpu_0_power_usage_watts"] == 350
    assert metrics["system/cpu_utilization_percentage"] >= 0


@pytest.mark.parametrize("has_driver", [False, True])
def test_a_warning_only_where_a_driver_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, has_driver: bool
) -> None:
    def fail() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    monkeypatch.setattr(system_metrics, "_DRIVER", tmp_path if has_driver else tmp_path / "none")
    with caplog.at_level(logging.DEBUG, logger=system_metrics.__name__):
        SystemMetrics(10.0).due()
    levels = [entry.levelno for entry in caplog.records if "no GPU metrics" in entry.message]
    assert levels == [logging.WARNING if has_driver else logging.DEBUG]
