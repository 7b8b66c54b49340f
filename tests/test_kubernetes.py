"""The manifests and the image against what they are for; no cluster needed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[1]
CRDS = os.environ.get("KUBERAY_CRD_DIR", "")
CLUSTER = yaml.safe_load((ROOT / "k8s" / "base" / "ray-cluster.yaml").read_text())


def manifests() -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in sorted((ROOT / "k8s").rglob("*.yaml")):
        for one in yaml.safe_load_all(path.read_text()):
            yield path, one


def unknown(value: Any, schema: dict[str, Any], where: str) -> Iterator[str]:
    """Fields that a structural schema does not know: Kubernetes would drop them in silence."""
    if isinstance(value, dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        known, rest = schema.get("properties", {}), schema.get("additionalProperties")
        for key, inner in value.items():
            if key in known:
                yield from unknown(inner, known[key], f"{where}.{key}")
            elif isinstance(rest, dict):
                yield from unknown(inner, rest, f"{where}.{key}")
            elif known or schema.get("type") != "object":
                yield f"{where}.{key}"
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from unknown(inner, schema.get("items", {}), f"{where}[{index}]")


def containers() -> Iterator[dict[str, Any]]:
    groups = [CLUSTER["spec"]["headGroupSpec"], *CLUSTER["spec"]["workerGroupSpecs"]]
    for group in groups:
        yield from group["template"]["spec"]["containers"]


@pytest.mark.skipif(not CRDS, reason="KUBERAY_CRD_DIR names no folder with KubeRay's schemas")
def test_ray_cluster_fits_kuberays_schema() -> None:
    crd = yaml.safe_load((Path(CRDS) / "ray.io_rayclusters.yaml").read_text())
    version = next(v for v in crd["spec"]["versions"] if v["name"] == "v1")
    schema = version["schema"]["openAPIV3Schema"]
    jsonschema.validate(CLUSTER, schema)
    spec = schema["properties"]["spec"]
    assert list(unknown(CLUSTER["spec"], spec, "spec")) == []
    assert list(unknown({"rayVersoin": ""}, spec, "spec")) == ["spec.rayVersoin"]


def test_ray_is_the_same_everywhere() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert f"ray=={CLUSTER['spec']['rayVersion']}\n" in lock
    assert "requirements.lock" in (ROOT / "Dockerfile").read_text()


def test_every_file_is_listed() -> None:
    for path in (ROOT / "k8s").rglob("kustomization.yaml"):
        listed = set(yaml.safe_load(path.read_text())["resources"])
        assert listed == {p.name for p in path.parent.glob("*.yaml")} - {path.name}


def test_secrets_are_references() -> None:
    value = re.compile(r"(?i)(secret|password|token|access_key)\s*[:=]\s*[\"']?[A-Za-z0-9+/]{16,}")
    for path, one in manifests():
        assert one["kind"] != "Secret", path
        assert not value.search(path.read_text()), path
    for container in containers():
        assert all("secretRef" in source for source in container["envFrom"])
        names = {variable["name"] for variable in container["env"]}
        assert not names & {"AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "WANDB_API_KEY"}


def test_pods_meet_the_restricted_standard_and_name_their_needs() -> None:
    for container in containers():
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert {"cpu", "memory", "ephemeral-storage"} == set(container["resources"]["requests"])
    for group in (CLUSTER["spec"]["headGroupSpec"], *CLUSTER["spec"]["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["restartPolicy"] == "Never"
        assert pod["automountServiceAccountToken"] is False


def test_grace_outlasts_the_drain() -> None:
    worker = CLUSTER["spec"]["workerGroupSpecs"][0]["template"]["spec"]
    command = worker["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]
    found = re.search(r"--deadline-remaining-seconds (\d+); sleep (\d+)", command)
    assert found is not None
    assert int(found[1]) == int(found[2]) < worker["terminationGracePeriodSeconds"]
