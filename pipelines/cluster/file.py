"""Cluster files: checks what `ray up` would refuse, with errors of one line, and lists the most machines they allow."""

import difflib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from pipelines.cluster.room import Machine

_KUBERAY = {"RayCluster", "RayJob", "RayService"}


def read_cluster_file(path: str) -> dict[str, Any]:
    """Return the first document that describes a cluster. ValueError if there is none."""
    try:
        documents = list(yaml.safe_load_all(Path(path).expanduser().read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; give a cluster file, e.g. ray-cluster.yaml") from None
    except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    for document in documents:
        if isinstance(document, dict) and (document.get("kind") in _KUBERAY or "kind" not in document):
            return document
    raise ValueError(f"{path} describes no cluster: give a file for `ray up`, or of kind {', '.join(sorted(_KUBERAY))}")


def check_cluster_file(path: str) -> dict[str, Any]:
    """Check what `ray up` needs and Ray's schema requires. ValueError names the key, its value and a valid one."""
    cluster = read_cluster_file(path)
    if cluster.get("kind") in _KUBERAY:
        raise ValueError(f"{path} is for Kubernetes: check it with kubectl apply --dry-run=server -f {path}")
    for problem in _missing(cluster):
        raise ValueError(f"{path}: {problem}")
    _check_schema(path, cluster)
    for target, source in (cluster.get("file_mounts") or {}).items():
        if not Path(source).expanduser().exists():
            raise ValueError(f"{path}: file_mounts.{target}={source} does not exist here: create it, or leave it out")
    types = cluster.get("available_node_types") or {}
    print(f"{path}: {cluster['cluster_name']} is a cluster file that `ray up` takes")
    return {"cluster": cluster["cluster_name"], "provider": cluster["provider"]["type"], "node_types": list(types)}


def machines_at_most(path: str, *, gpus_first: bool) -> list[Machine]:
    """Return the workers a cluster may grow to, and with `ray up` its head. ValueError if the file lacks their
    resources.

    If `max_workers` is too small for all node types, those with the most GPUs come first with `gpus_first`, else those
    with the most CPUs.
    """
    cluster = read_cluster_file(path)
    if cluster.get("kind") in _KUBERAY:
        return [*_of_kuberay(path, cluster)]
    for problem in _missing(cluster):
        raise ValueError(f"{path}: {problem}")
    if cluster["provider"]["type"] == "local":
        raise ValueError(f"{path}: a cluster of given machines does not grow: leave --cluster out")
    return [*_of_ray_up(path, cluster, gpus_first)]


def _missing(cluster: Mapping[str, Any]) -> Iterator[str]:
    """Yield a message for each missing key that Ray would report by a traceback."""
    provider = cluster.get("provider")
    if not cluster.get("cluster_name"):
        yield "cluster_name is missing: give a name, by which `ray up` finds its machines again"
    if not isinstance(provider, Mapping) or not provider.get("type"):
        yield "provider.type is missing: give aws, gcp, azure, or local for machines that are there"
        return
    if provider["type"] == "local":
        for key, example in (("head_ip", "192.168.0.10"), ("worker_ips", "[192.168.0.11]")):
            if "coordinator_address" not in provider and key not in provider:
                yield f"provider.{key} is missing: give e.g. {example}"
    else:
        if provider["type"] == "aws" and not provider.get("region"):
            yield "provider.region is missing: give e.g. us-west-2"
        types = cluster.get("available_node_types")
        if not isinstance(types, Mapping) or not types:
            yield "available_node_types is missing: name the kinds of machines, as in ray-cluster.yaml"
            return
        if "head_node_type" not in cluster:
            yield f"head_node_type is missing: give one of {', '.join(types)}"
        if cluster.get("head_node_type") not in types:
            yield f"head_node_type={cluster.get('head_node_type')} is not a node type: give one of {', '.join(types)}"
        for name, kind in types.items():
            if not isinstance(kind, Mapping) or "node_config" not in kind:
                yield f"available_node_types.{name}.node_config is missing: give e.g. {{InstanceType: m6i.4xlarge}}"
    if not (cluster.get("auth") or {}).get("ssh_user"):
        yield "auth.ssh_user is missing: give the user that may log in, e.g. ubuntu"


def _check_schema(path: str, cluster: dict[str, Any]) -> None:
    import jsonschema
    import ray.autoscaler
    from ray.autoscaler import sdk

    schema = json.loads(Path(ray.autoscaler.__file__).with_name("ray-schema.json").read_text(encoding="utf-8"))
    try:
        jsonschema.validate(cluster, schema)  # as written, then with defaults
        jsonschema.validate(sdk.fillout_defaults(cluster), schema)
    except jsonschema.ValidationError as error:
        raise ValueError(f"{path}: {_explained(error)}") from None
    except Exception as error:  # Ray's other errors for invalid files
        raise ValueError(f"{path}: Ray refuses it: {' '.join(str(error).split())[:300]}") from None


def _explained(error: Any) -> str:
    """Return a schema error in words: the key, its value, and a valid one."""
    where = ".".join(str(part) for part in error.absolute_path)
    if error.validator == "additionalProperties":
        known = list(error.schema.get("properties", {}))
        unknown = next(key for key in error.instance if key not in known)
        key = f"{where}.{unknown}" if where else unknown
        near = difflib.get_close_matches(unknown, known, n=1)
        return f"{key} is not a key of cluster files: " + (f"did you mean {near[0]}?" if near else "leave it out")
    if error.validator == "required":
        key = error.message.split("'")[1]
        return f"{f'{where}.' if where else ''}{key} is missing"
    if error.validator == "type":
        return f"{where}={error.instance!r} is not of type {error.validator_value}: give one"
    return f"{where}: {error.message}"


def _of_ray_up(path: str, cluster: Mapping[str, Any], gpus_first: bool) -> Iterator[Machine]:
    left = cluster.get("max_workers", 2)  # Ray's default
    workers: list[Machine] = []
    for name, kind in cluster["available_node_types"].items():
        machine = _machine(f"{path}: available_node_types.{name}", kind)
        if name == cluster["head_node_type"]:
            yield machine
        else:
            workers += [machine] * min(kind.get("max_workers", left), left)
    workers.sort(key=lambda machine: (machine["gpus"] * gpus_first, machine["cpus"]), reverse=True)
    yield from workers[:left]


def _machine(where: str, kind: Mapping[str, Any]) -> Machine:
    """Return the CPUs and GPUs of a node type, from its `resources`."""
    said = kind.get("resources") or {}
    if "CPU" not in said:
        name = kind["node_config"].get("InstanceType")
        raise ValueError(f"{where}.resources does not say how many CPUs and GPUs {name} has: give {{CPU: 16, GPU: 1}}")
    return Machine(cpus=float(said["CPU"]), gpus=float(said.get("GPU", 0)))


def _of_kuberay(path: str, manifest: Mapping[str, Any]) -> Iterator[Machine]:
    spec = manifest["spec"]
    cluster = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
    for group in cluster.get("workerGroupSpecs", ()):
        limits = group["template"]["spec"]["containers"][0].get("resources", {}).get("limits", {})
        if "cpu" not in limits:
            raise ValueError(f"{path}: group {group['groupName']} has no resources.limits.cpu: give them")
        text = str(limits["cpu"])
        cpus = float(text[:-1]) / 1000 if text.endswith("m") else float(text)
        for _ in range(int(group.get("maxReplicas", group.get("replicas", 0)))):
            yield Machine(cpus=float(math.ceil(cpus)), gpus=float(limits.get("nvidia.com/gpu", 0)))
