"""What KubeRay accepts, strictly: a field that nobody reads is an error, as `kubeconform -strict` would say.

The fields of Ray's own kinds are those of KubeRay's API reference (ray.io/v1, authOptions of KubeRay 1.5.1 included),
written down here; pod templates and the like, which are most of a manifest, are checked by the schemas of Kubernetes
itself that kubernetes-validate brings along. It is not the custom resource definition: what expressions check there is
not checked here, and of what came later only what the manifests use is known.
"""

import functools
import json
from importlib import resources
from typing import Any

import jsonschema
from referencing import Registry, Resource

KUBERNETES_VERSION = "1.34.0"

_DEFINITIONS = "https://kubernetes.io/api/_definitions.json"


def _kubernetes(kind: str) -> dict[str, Any]:
    return {"$ref": f"{_DEFINITIONS}#/$defs/io.k8s.api.core.v1.{kind}"}


def _closed(required: tuple[str, ...], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": properties, "additionalProperties": False}


_TEXT, _FLAG, _WHOLE = {"type": "string"}, {"type": "boolean"}, {"type": "integer"}
_COUNT = {"type": "integer", "minimum": 0}
_TEXTS = {"type": "object", "additionalProperties": _TEXT}
_METADATA = {"$ref": f"{_DEFINITIONS}#/$defs/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"}
_TEMPLATE = _kubernetes("PodTemplateSpec")

_AUTOSCALER_OPTIONS = _closed(
    (),
    resources=_kubernetes("ResourceRequirements"),
    image=_TEXT,
    imagePullPolicy={"enum": ["Always", "IfNotPresent", "Never"]},
    securityContext=_kubernetes("SecurityContext"),
    idleTimeoutSeconds=_COUNT,
    upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
    version={"enum": ["v1", "v2"]},
    env={"type": "array", "items": _kubernetes("EnvVar")},
    envFrom={"type": "array", "items": _kubernetes("EnvFromSource")},
    volumeMounts={"type": "array", "items": _kubernetes("VolumeMount")},
)

_HEAD_GROUP = _closed(
    ("template",),
    template=_TEMPLATE,
    headService=_kubernetes("Service"),
    enableIngress=_FLAG,
    rayStartParams=_TEXTS,
    serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"]},
)

_WORKER_GROUP = _closed(
    ("groupName", "template", "minReplicas", "maxReplicas"),
    groupName=_TEXT,
    suspend=_FLAG,
    replicas=_COUNT,
    minReplicas=_COUNT,
    maxReplicas=_COUNT,
    idleTimeoutSeconds=_COUNT,
    rayStartParams=_TEXTS,
    template=_TEMPLATE,
    scaleStrategy=_closed((), workersToDelete={"type": "array", "items": _TEXT}),
    numOfHosts=_COUNT,
)

RAY_CLUSTER_SPEC = _closed(
    ("headGroupSpec",),
    suspend=_FLAG,
    managedBy=_TEXT,
    authOptions=_closed((), mode={"enum": ["disabled", "token"]}),
    autoscalerOptions=_AUTOSCALER_OPTIONS,
    headServiceAnnotations=_TEXTS,
    enableInTreeAutoscaling=_FLAG,
    headGroupSpec=_HEAD_GROUP,
    rayVersion=_TEXT,
    workerGroupSpecs={"type": "array", "items": _WORKER_GROUP},
)

RAY_JOB_SPEC = _closed(
    (),
    activeDeadlineSeconds={"type": "integer", "minimum": 1},
    backoffLimit=_COUNT,
    rayClusterSpec=RAY_CLUSTER_SPEC,
    submitterPodTemplate=_TEMPLATE,
    metadata=_TEXTS,
    clusterSelector=_TEXTS,
    submitterConfig=_closed((), backoffLimit=_COUNT),
    managedBy=_TEXT,
    entrypoint=_TEXT,
    runtimeEnvYAML=_TEXT,
    jobId=_TEXT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    entrypointResources=_TEXT,
    entrypointNumCpus={"type": "number"},
    entrypointNumGpus={"type": "number"},
    ttlSecondsAfterFinished=_WHOLE,
    shutdownAfterJobFinishes=_FLAG,
    suspend=_FLAG,
)

_KINDS = {"RayCluster": RAY_CLUSTER_SPEC, "RayJob": RAY_JOB_SPEC}


@functools.cache
def _registry() -> Registry:
    folder = resources.files("kubernetes_validate") / f"kubernetes-json-schema/v{KUBERNETES_VERSION}-local-strict"
    return Resource.from_contents(json.loads((folder / "_definitions.json").read_text())) @ Registry()


def check(manifest: dict[str, Any]) -> None:
    """jsonschema.ValidationError if KubeRay would not take a RayCluster or RayJob, or would ignore a part of it."""
    kind = manifest["kind"]
    schema = _closed(
        ("apiVersion", "kind", "metadata", "spec"),
        apiVersion={"const": "ray.io/v1"},
        kind={"const": kind},
        metadata=_METADATA,
        spec=_KINDS[kind],
    )
    jsonschema.Draft202012Validator(schema, registry=_registry()).validate(manifest)
