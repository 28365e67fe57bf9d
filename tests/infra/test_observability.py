"""Prometheus and Grafana: what the dashboard asks for exists, and our gauges arrive where Prometheus reads them."""

import json
import re
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from pipelines.tracking.gauges import EVALUATION_GAUGES, STEP_GAUGES

FOLDER = Path(__file__).parents[2] / "infra/observability"
OURS = {f"ray_{name}" for name, _ in [*STEP_GAUGES.values(), *EVALUATION_GAUGES.values()]}


@pytest.fixture
def dashboard() -> dict[str, Any]:
    return json.loads((FOLDER / "dashboard.json").read_text())


def expressions(dashboard: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]


def metrics(expression: str) -> set[str]:
    return set(re.findall(r"\bray_[a-z_]+", expression))


@cache
def ray_sources() -> str:
    """What defines Ray's metrics, as text: the names appear there without `ray_`, Ray Data's also without `data_`."""
    root = Path(ray.__file__).parent
    files = [
        root / "dashboard/modules/reporter/reporter_agent.py",
        root / "data/_internal/stats.py",
        root / "data/_internal/execution/interfaces/op_runtime_metrics.py",
    ]
    return "\n".join(file.read_text() for file in files)


def exists(metric: str) -> bool:
    if metric in OURS:
        return True
    name = metric.removeprefix("ray_")
    if re.search(rf'"{name}"', ray_sources()):
        return True
    field = name.removeprefix("data_")
    is_field = re.search(rf"^    (def )?{field}(: \w+ = metric_field|\(self\))", ray_sources(), re.MULTILINE)
    return name.startswith("data_") and is_field is not None


def test_every_metric_of_the_dashboard_exists(dashboard):
    asked = {metric for expression in expressions(dashboard) for metric in metrics(expression)}
    assert {metric for metric in asked if not exists(metric)} == set()
    assert asked >= OURS  # what we export is shown


def test_a_metric_that_does_not_exist_would_be_noticed():
    assert exists("ray_data_output_rows") and exists("ray_data_num_tasks_running") and exists("ray_node_mem_used")
    assert not exists("ray_data_rows_output") and not exists("ray_groupvit_map") and not exists("ray_num_tasks_running")


def test_the_dashboard_is_one_that_grafana_loads(dashboard):
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert dashboard["schemaVersion"] >= 36
    assert len(set(ids)) == len(ids)
    defined = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(dashboard["panels"])))
    assert used == defined
    shown = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert all(panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"} for panel in shown)
    for panel in shown:
        place = panel["gridPos"]
        assert place["x"] >= 0 and place["x"] + place["w"] <= 24
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        assert all(target["expr"].count("(") == target["expr"].count(")") for target in panel["targets"])


def test_prometheus_reads_the_file_that_ray_writes():
    (job,) = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    (discovery,) = job["file_sd_configs"]
    folder, _, name = discovery["files"][0].rpartition("/")
    assert folder == "/tmp/ray"
    assert f'"{name}"' in (Path(ray.__file__).parent / "_private/ray_constants.py").read_text()


def test_the_pod_monitor_finds_the_port_of_the_manifests():
    monitor = yaml.safe_load((FOLDER / "podmonitor.yaml").read_text())
    assert (monitor["apiVersion"], monitor["kind"]) == ("monitoring.coreos.com/v1", "PodMonitor")
    assert set(monitor["spec"]) == {"selector", "podMetricsEndpoints"}
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    manifest = (FOLDER.parent / "kuberay/job/ray-job.yaml").read_text()
    assert manifest.count(f"{{name: {endpoint['port']}, containerPort: 8080}}") == 3


_EXPORT = """
import sys, time, urllib.request
import ray
from pipelines.tracking.gauges import EvaluationGauges, StepGauges

port = int(sys.argv[1])
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, _metrics_export_port=port)
steps, evaluations = StepGauges("a-run"), EvaluationGauges("a-run")
text = ""
for _ in range(240):
    steps.set(7, {"loss": 2.5, "images_per_second": 64.0, "unknown": 1.0}, global_batch_size=32)
    evaluations.set(5, miou=41.5, best_miou=43.0)
    try:
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
    except OSError:
        pass
    if "ray_groupvit_miou_percent" in text and "ray_groupvit_step_seconds" in text:
        break
    time.sleep(0.5)
print(text)
"""


@pytest.mark.slow
def test_gauges_arrive_at_prometheus():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", _EXPORT, str(port)], cwd=root, capture_output=True, text=True, check=True, timeout=280
    )
    found = {
        line.partition("{")[0]: (float(line.rpartition(" ")[2]), line)
        for line in done.stdout.splitlines()
        if line.startswith("ray_groupvit_")
    }
    values = {name: value for name, (value, _) in found.items()}
    assert values == {
        "ray_groupvit_step": 7,
        "ray_groupvit_loss": 2.5,
        "ray_groupvit_step_seconds": 0.5,
        "ray_groupvit_images_per_second": 64,
        "ray_groupvit_evaluated_step": 5,
        "ray_groupvit_miou_percent": 41.5,
        "ray_groupvit_best_miou_percent": 43,
    }
    assert all('run="a-run"' in line for _, line in found.values())
