"""The Kubernetes files: kinds and fields of KubeRay v1.7, the project's own versions, closed by default.

The field names are those of KubeRay's API reference (`ray.io/v1`); no API server is at hand here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from orchestrator import __version__
from orchestrator.config.serving import ServingSettings
from tests.architecture.modules import ROOT

FOLDER = ROOT / "kuberay"
FIELDS = {
    "RayJob": {
        *("entrypoint", "runtimeEnvYAML", "submissionMode", "rayClusterSpec", "shutdownAfterJobFinishes"),
        *("ttlSecondsAfterFinished", "deletionStrategy", "backoffLimit", "activeDeadlineSeconds", "suspend"),
        *("preRunningDeadlineSeconds", "entrypointNumCpus", "entrypointNumGpus", "entrypointResources"),
        *("metadata", "submitterPodTemplate", "clusterSelector"),
    },
    "RayService": {
        *("serveConfigV2", "rayClusterConfig", "upgradeStrategy", "rayClusterDeletionDelaySeconds"),
        *("excludeHeadPodFromServeSvc", "suspend"),
    },
    "cluster": {
        *("rayVersion", "enableInTreeAutoscaling", "autoscalerOptions", "authOptions", "tlsOptions"),
        *("gcsFaultToleranceOptions", "networkPolicy", "headGroupSpec", "workerGroupSpecs"),
    },
    "head": {"rayStartParams", "template", "labels", "resources"},
    "group": {
        *("groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template", "labels"),
        *("resources", "numOfHosts", "idleTimeoutSeconds"),
    },
}
MODES = {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"}


def documents() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted(FOLDER.glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            yield path.name, document


def of_kind(kind: str) -> dict[str, Any]:
    (found,) = [document for _, document in documents() if document["kind"] == kind]
    return found


CLUSTERS = {
    "RayJob": lambda: of_kind("RayJob")["spec"]["rayClusterSpec"],
    "RayService": lambda: of_kind("RayService")["spec"]["rayClusterConfig"],
}


def pods(cluster: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found = {group["groupName"]: group["template"]["spec"] for group in cluster["workerGroupSpecs"]}
    return {"head": cluster["headGroupSpec"]["template"]["spec"], **found}


def test_kinds_and_versions() -> None:
    versions = {document["kind"]: document["apiVersion"] for _, document in documents()}
    assert versions == {
        "NetworkPolicy": "networking.k8s.io/v1",
        "PersistentVolumeClaim": "v1",
        "Service": "v1",
        "StatefulSet": "apps/v1",
        "RayJob": "ray.io/v1",
        "RayService": "ray.io/v1",
    }
    assert all(document["metadata"]["name"].startswith("orchestrator") for _, document in documents())


@pytest.mark.parametrize("kind", CLUSTERS)
def test_only_known_fields(kind: str) -> None:
    assert of_kind(kind)["spec"].keys() <= FIELDS[kind]
    cluster = CLUSTERS[kind]()
    assert cluster.keys() <= FIELDS["cluster"]
    assert cluster["headGroupSpec"].keys() <= FIELDS["head"]
    assert cluster["autoscalerOptions"]["version"] == "v2"
    for group in cluster["workerGroupSpecs"]:
        assert group.keys() <= FIELDS["group"]
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


@pytest.mark.parametrize("kind", CLUSTERS)
def test_versions_are_the_projects(kind: str) -> None:
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    cluster = CLUSTERS[kind]()
    assert f"ray=={cluster['rayVersion']}" in pinned
    for name, pod in pods(cluster).items():
        (container,) = pod["containers"]
        assert container["image"].rpartition(":")[2].removesuffix("-cuda") == __version__, name


@pytest.mark.parametrize("kind", CLUSTERS)
def test_a_token_a_head_that_survives_and_shared_storage(kind: str) -> None:
    cluster = CLUSTERS[kind]()
    assert cluster["authOptions"] == {"mode": "token", "secretName": "orchestrator-ray-token"}
    redis = cluster["gcsFaultToleranceOptions"]
    services = {document["metadata"]["name"] for _, document in documents() if document["kind"] == "Service"}
    assert redis["redisAddress"].removeprefix("redis://").partition(":")[0] in services
    assert "secretKeyRef" in redis["redisPassword"]["valueFrom"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for name, pod in pods(cluster).items():
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        claim = volumes["shared"]["persistentVolumeClaim"]["claimName"]
        assert claim == of_kind("PersistentVolumeClaim")["metadata"]["name"], name
        assert volumes["memory"]["emptyDir"]["medium"] == "Memory"
        (container,) = pod["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts.keys() == volumes.keys(), name
        assert mounts["memory"] == "/dev/shm"
        environment = {entry["name"]: entry["value"] for entry in container["env"]}
        for variable in ("ORCHESTRATOR_STORE", "ORCHESTRATOR_CACHE"):
            assert environment[variable].startswith(f"{mounts['shared']}/")


@pytest.mark.parametrize("kind", CLUSTERS)
def test_memory_is_promised_and_rights_are_few(kind: str) -> None:
    for name, pod in pods(CLUSTERS[kind]()).items():
        assert pod["securityContext"]["runAsNonRoot"], name
        assert pod["automountServiceAccountToken"] is (name == "head"), "the autoscaler alone asks Kubernetes"
        (container,) = pod["containers"]
        resources = container["resources"]
        assert resources["requests"]["memory"] == resources["limits"]["memory"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }


def test_the_job_goes_on_after_a_lost_cluster() -> None:
    spec = of_kind("RayJob")["spec"]
    assert spec["submissionMode"] in MODES
    assert spec["backoffLimit"] >= 1
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["entrypointNumCpus"] >= 1, "the driver measures: not on the head"
    words = spec["entrypoint"].split()
    assert words[:3] == ["python", "-m", "jobs.pipeline"]
    assert words[words.index("--store") + 1].startswith("/shared/")
    assert set(yaml.safe_load(spec["runtimeEnvYAML"])) == {"env_vars"}, "all packages are in the image"


def test_the_service_is_serve_yaml_behind_keys() -> None:
    spec = of_kind("RayService")["spec"]
    found = yaml.safe_load(spec["serveConfigV2"])
    plain = yaml.safe_load((ROOT / "deployments" / "serve.yaml").read_text(encoding="utf-8"))
    assert found.keys() == plain.keys()
    (application,), (expected,) = found["applications"], plain["applications"]
    for key in ("name", "route_prefix", "import_path"):
        assert application[key] == expected[key]
    assert application["args"]["refs"] == expected["args"]["refs"]
    settings = ServingSettings.model_validate(application["args"]["serving"])
    assert settings.access.keys is not None
    assert settings.replicas >= 2
    assert spec["upgradeStrategy"]["type"] in {"NewCluster", "NewClusterWithIncrementalUpgrade", "None"}
    mounted = list(pods(CLUSTERS["RayService"]())["serve"]["containers"][0]["volumeMounts"])
    assert any(settings.access.keys.startswith(f"{mount['mountPath']}/") for mount in mounted)


def test_ports_are_closed_but_for_named_peers() -> None:
    policies = {
        document["metadata"]["name"]: document["spec"]
        for _, document in documents()
        if document["kind"] == "NetworkPolicy"
    }
    ray = policies["orchestrator-ray"]
    assert ray["podSelector"] == {"matchLabels": {"ray.io/is-ray-node": "yes"}}
    assert set(ray["policyTypes"]) == {"Ingress", "Egress"}
    assert all(rule["from"] for rule in ray["ingress"]), "an empty peer list lets everybody in"
    for rule in ray["ingress"]:
        inside = {"podSelector": ray["podSelector"]} in rule["from"]
        assert inside or {port["port"] for port in rule["ports"]} <= {8000, 8080, 8265, 52365}
    submitter = of_kind("RayJob")["spec"]["submitterPodTemplate"]["metadata"]["labels"]
    assert any({"podSelector": {"matchLabels": submitter}} in rule["from"] for rule in ray["ingress"])


def test_no_secret_is_written_down() -> None:
    for name, document in documents():
        assert document["kind"] != "Secret", name
    text = "".join(path.read_text(encoding="utf-8") for path in FOLDER.glob("*.yaml"))
    assert "RAY_AUTH_TOKEN" not in text
