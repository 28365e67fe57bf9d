"""`groupvit submit check-cluster`: mistakes in cluster files, and how far a cluster may grow."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.cli.main import main
from pipelines.cluster.file import machines_at_most

ROOT = Path(__file__).parents[3]
OURS = yaml.safe_load((ROOT / "ray-cluster.yaml").read_text())
DROP = object()


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with what the cluster file wants to be there."""
    for name in (".ray/auth_token", ".config/groupvit/cluster.env"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(ROOT)
    return tmp_path


def changed(path: str, value: Any) -> dict[str, Any]:
    cluster = copy.deepcopy(OURS)
    part = cluster
    *parents, last = path.split("/")
    for key in parents:
        part = part[key]
    if value is DROP:
        del part[last]
    else:
        part[last] = value
    return cluster


def test_ours_is_right(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "check-cluster", "ray-cluster.yaml"]) == 0
    assert "is a cluster file that `ray up` takes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("cluster_name", DROP, "cluster_name is missing: give a name"),
        ("provider", DROP, "provider.type is missing: give aws"),
        ("provider/region", DROP, "provider.region is missing: give e.g. us-west-2"),
        ("provider", {"type": "local", "worker_ips": []}, "provider.head_ip is missing: give e.g."),
        ("available_node_types", DROP, "available_node_types is missing"),
        ("head_node_type", DROP, "head_node_type is missing: give one of head, cpu"),
        ("head_node_type", "haed", "head_node_type=haed is not a node type"),
        ("available_node_types/cpu/node_config", DROP, "available_node_types.cpu.node_config is missing"),
        ("auth", DROP, "auth.ssh_user is missing"),
        ("max_worker", 3, "max_worker is not a key of cluster files: did you mean max_workers?"),
        ("available_node_types/cpu/max_worker", 3, "available_node_types.cpu.max_worker is not a key"),
        ("max_workers", "many", "max_workers='many' is not of type integer"),
        ("file_mounts/x", "/nowhere/at/all", "file_mounts.x=/nowhere/at/all does not exist here"),
    ],
)
def test_a_mistake_is_one_line(
    path: str, value: Any, message: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = files / "cluster.yaml"
    file.write_text(yaml.safe_dump(changed(path, value), sort_keys=False))
    assert main(["submit", "check-cluster", str(file)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"groupvit: error: {file}: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "message"), [("a: [", "is not YAML"), ("3", "describes no cluster"), ("kind: Pod", "describes no cluster")]
)
def test_what_is_no_cluster_file(text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.yaml").write_text(text)
    assert main(["submit", "check-cluster", str(tmp_path / "x.yaml")]) == 2
    assert message in capsys.readouterr().err
    assert main(["submit", "check-cluster", "/nowhere.yaml"]) == 2
    assert "no such file" in capsys.readouterr().err


def test_how_far_a_cluster_grows(tmp_path: Path) -> None:
    machines = machines_at_most(str(ROOT / "ray-cluster.yaml"), gpus_first=True)
    assert sorted((machine["cpus"], machine["gpus"]) for machine in machines) == (
        [(0, 0)] + [(16, 0)] * 4 + [(48, 4)] * 8  # the head, and 12 workers at most
    )
    machines = machines_at_most(str(ROOT / "infra/kuberay/cluster/ray-cluster.yaml"), gpus_first=True)
    assert sorted((machine["cpus"], machine["gpus"]) for machine in machines) == [(15, 0)] * 8 + [(44, 4)] * 4
    [manifest] = yaml.safe_load_all((ROOT / "infra/kuberay/cluster/ray-cluster.yaml").read_text())
    group = manifest["spec"]["workerGroupSpecs"][0]
    group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"] = "2500m"  # KubeRay rounds up
    (tmp_path / "kuberay.yaml").write_text(yaml.safe_dump(manifest))
    assert machines_at_most(str(tmp_path / "kuberay.yaml"), gpus_first=True)[0]["cpus"] == 3
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(changed("available_node_types/cpu/resources", {})))
    with pytest.raises(
        ValueError, match=r"available_node_types.cpu.resources does not say how many CPUs .* m6i.4xlarge has"
    ):
        machines_at_most(str(file), gpus_first=True)
    file.write_text(yaml.safe_dump(changed("max_workers", 3)))  # of all kinds together
    assert [machine["gpus"] for machine in machines_at_most(str(file), gpus_first=True)] == [0, 4, 4, 4]
