"""The manifests for Kubernetes: strictly valid, without rights or secrets they need not have, and equal where they must
be."""

import copy
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from pipelines.cli.main import main
from pipelines.experiments.config import ExperimentConfig, validate
from tests.support import kuberay_schema

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "infra/kuberay"
KUBERAY = {"cluster": FOLDER / "cluster/ray-cluster.yaml", "job": FOLDER / "job/ray-job.yaml"}
PLAIN = [
    FOLDER / "common/service-account.yaml",
    FOLDER / "common/network-policy.yaml",
    *sorted((ROOT / "infra/mlflow/kubernetes").glob("[!k]*.yaml")),
]


def manifests(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


@pytest.fixture
def cluster() -> dict[str, Any]:
    return manifests(KUBERAY["cluster"])[0]


@pytest.fixture
def job() -> dict[str, Any]:
    return manifests(KUBERAY["job"])[0]


def pods(manifest: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, pod spec) of every pod template in a manifest."""
    spec = manifest["spec"]
    cluster = spec.get("rayClusterSpec", spec)
    if "headGroupSpec" in cluster:
        yield "head", cluster["headGroupSpec"]["template"]["spec"]
        for group in cluster["workerGroupSpecs"]:
            yield group["groupName"], group["template"]["spec"]
    for name in ("submitterPodTemplate", "template"):
        if name in spec:
            yield name, spec[name]["spec"]


@pytest.mark.parametrize("name", KUBERAY)
def test_ray_manifests_are_strictly_valid(name):
    for manifest in manifests(KUBERAY[name]):
        kuberay_schema.check(manifest)


@pytest.mark.parametrize("path", PLAIN, ids=lambda path: path.name)
def test_plain_manifests_are_strictly_valid(path):
    found = manifests(path)
    assert found
    for manifest in found:
        kubernetes_validate.validate(manifest, kuberay_schema.KUBERNETES_VERSION, strict=True)


def misspell(manifest: dict[str, Any], *path: str | int) -> dict[str, Any]:
    """A copy in which the last field of the path has another name."""
    changed = copy.deepcopy(manifest)
    part: Any = changed
    for key in path[:-1]:
        part = part[key]
    part[f"{path[-1]}s"] = part.pop(path[-1])
    return changed


@pytest.mark.parametrize(
    "path",
    [
        ("spec", "backoffLimit"),
        ("spec", "submitterConfig", "backoffLimit"),
        ("spec", "rayClusterSpec", "autoscalerOptions", "idleTimeoutSeconds"),
        ("spec", "rayClusterSpec", "workerGroupSpecs", 0, "minReplicas"),
        ("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "serviceAccountName"),
        ("spec", "rayClusterSpec", "workerGroupSpecs", 1, "template", "spec", "containers", 0, "securityContext"),
        ("spec", "rayClusterSpec", "workerGroupSpecs", 1, "template", "spec", "tolerations", 0, "operator"),
        ("spec", "submitterPodTemplate", "spec", "restartPolicy"),
    ],
)
def test_the_validation_would_notice_a_misspelt_field(job, path):
    with pytest.raises(jsonschema.ValidationError, match=f"{path[-1]}s"):
        kuberay_schema.check(misspell(job, *path))


def test_the_validation_would_notice_a_wrong_type(job):
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["rayStartParams"]["num-cpus"] = 4  # KubeRay wants text
    with pytest.raises(jsonschema.ValidationError, match="4 is not of type 'string'"):
        kuberay_schema.check(job)


@pytest.mark.parametrize("path", [*KUBERAY.values(), *PLAIN], ids=lambda path: path.name)
def test_pods_have_no_rights_they_do_not_need(path):
    for manifest in manifests(path):
        for where, pod in pods(manifest) if "spec" in manifest else ():
            assert pod["securityContext"]["runAsNonRoot"] is True, where
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, where
            # Only the head speaks to Kubernetes.
            assert pod["automountServiceAccountToken"] is (where == "head"), where
            for container in [*pod["containers"], *pod.get("initContainers", [])]:
                context = container["securityContext"]
                assert context["allowPrivilegeEscalation"] is False, where
                assert context["capabilities"] == {"drop": ["ALL"]}, where
                assert set(container["resources"]) == {"requests", "limits"}, where


@pytest.mark.parametrize("path", [*KUBERAY.values(), *PLAIN], ids=lambda path: path.name)
def test_secrets_come_by_reference(path):
    for manifest in manifests(path):
        assert manifest["kind"] != "Secret"
        for _, pod in pods(manifest) if "spec" in manifest else ():
            for container in pod["containers"]:
                for variable in container.get("env", []):
                    if re.search("KEY|TOKEN|PASSWORD|SECRET", variable["name"]):
                        assert "value" not in variable and "secretKeyRef" in variable["valueFrom"], variable["name"]


@pytest.mark.parametrize("name", KUBERAY)
def test_ray_pods_answer_probes_and_show_metrics(name):
    for manifest in manifests(KUBERAY[name]):
        for where, pod in pods(manifest):
            if where != "submitterPodTemplate":
                container = pod["containers"][0]
                assert {"readinessProbe", "livenessProbe"} <= container.keys(), where
                assert {"name": "metrics", "containerPort": 8080} in container["ports"], where


def test_only_the_gpu_group_has_gpus_and_goes_where_they_are(cluster):
    for where, pod in pods(cluster):
        limits = pod["containers"][0]["resources"]["limits"]
        tolerated = {toleration["key"] for toleration in pod.get("tolerations", [])}
        assert ("nvidia.com/gpu" in limits) is (where == "gpu")
        assert ("nvidia.com/gpu" in tolerated) is (where == "gpu")
        assert ("groupvit/spot" in tolerated) is (where != "head")  # a cluster dies with its head


def test_the_job_has_the_cluster_of_the_cluster_but_for_its_size(cluster, job):
    theirs = copy.deepcopy(job["spec"]["rayClusterSpec"])
    for group in [*theirs["workerGroupSpecs"], *cluster["spec"]["workerGroupSpecs"]]:
        group["replicas"] = group["minReplicas"] = 0
    assert theirs == cluster["spec"]


def test_the_job_is_one_that_a_new_cluster_continues(job, monkeypatch):
    """As the command line reads its command: a fixed name, a folder all clusters reach, workers for all its GPUs."""
    seen: list[ExperimentConfig] = []
    monkeypatch.setattr("pipelines.training.pretrain.pretrain", lambda config: seen.append(config) or {})
    command = job["spec"]["entrypoint"].split()
    assert command[0] == "groupvit"
    assert main(command[1:]) == 0
    validate(seen[0])
    training = seen[0].training
    assert job["spec"]["backoffLimit"] > 0
    assert training.run_name is not None
    assert training.runs_folder.startswith("s3://")
    (gpu,) = [group for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"] if group["groupName"] == "gpu"]
    resources = gpu["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert training.num_workers == gpu["minReplicas"] * int(resources["nvidia.com/gpu"])
    assert training.num_workers * training.cpus_per_worker <= gpu["minReplicas"] * int(resources["cpu"])


def test_images_are_of_this_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    images = yaml.safe_load((FOLDER / "images/kustomization.yaml").read_text())["images"]
    assert {image["newTag"] for image in images} == {version}
    assert {image["name"] for image in images} == {"groupvit-cpu", "groupvit-gpu"}
    dockerfile = (ROOT / "infra/docker/Dockerfile").read_text()
    assert all(f"-t {image['name']}:{version} " in dockerfile for image in images)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize("name", KUBERAY)
def test_kustomize_renders(name):
    done = subprocess.run(["kubectl", "kustomize", FOLDER / name], capture_output=True, text=True, check=True)
    rendered = [document for document in yaml.safe_load_all(done.stdout) if document]
    kinds = {document["kind"] for document in rendered}
    assert kinds == {"ServiceAccount", "ConfigMap", "NetworkPolicy", {"cluster": "RayCluster", "job": "RayJob"}[name]}
    for document in rendered:
        assert document["metadata"]["namespace"] == "groupvit"
        if document["apiVersion"] == "ray.io/v1":
            kuberay_schema.check(document)
            images = [pod["containers"][0]["image"] for _, pod in pods(document)]
            assert all(re.fullmatch(r"groupvit-(cpu|gpu):0\.1\.0", image) for image in images)
