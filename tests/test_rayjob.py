"""`era submit --kubernetes`: what it renders, what it refuses, and how it follows a RayJob."""

from __future__ import annotations

import copy
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from kubernetes_api import HEAD, SHOWN_BY, Api, kubernetes_api
from manifests import BIN, GPU, OVERLAYS, ROOT, Object, cluster, job, pods, train

from pipeline.config import load_train_config
from pipeline.errors import UserError
from pipeline.runfolder import write_result
from pipeline.submit import (
    KubernetesOptions,
    Outcome,
    render,
    submit_to_kubernetes,
    urls_command,
    watch,
)
from pipeline.submit.kubectl import RayJob
from pipeline.submit.kubernetes import _start
from pipeline.submit.rayjob import _ask
from pipeline.submit.rules import problems
from pipeline.submit.template import cluster_of, job_of

RULES = {"deletionStrategy": {"deletionRules": [{"policy": "DeleteWorkers"}]}}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kuberays_own_rules_hold(overlay: str) -> None:
    assert problems(cluster(overlay)) == []
    assert problems(job(overlay)) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (RULES, "deletionRules exclude shutdownAfterJobFinishes"),
        ({"suspend": True, "shutdownAfterJobFinishes": False}, "suspend .Kueue. needs shutdown"),
        ({"suspend": True}, "excludes the autoscaler"),
        ({"shutdownAfterJobFinishes": False}, "ttlSecondsAfterFinished needs shutdownAfter"),
        ({"activeDeadlineSeconds": 0}, "must be positive"),
        (RULES, "autoscaler"),
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
    assert cluster_of(overlay)["metadata"].get("annotations") == cluster(overlay)["metadata"].get(
        "annotations"
    )


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
    for overlay, counts in (("base", [2, 2, 8]), ("kueue", [8, 8, 8])):  # a gang has them all
        tune = train("scaling.workers=2", verb="tune", at_once=4)
        sweep = render(tune, KubernetesOptions(overlay))["spec"]["rayClusterSpec"]
        group = sweep["workerGroupSpecs"][0]
        assert [group[k] for k in ("replicas", "minReplicas", "maxReplicas")] == counts
    idle = render(train("scaling.gpu=false"), KubernetesOptions("gpu"))
    group = idle["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    assert GPU not in group["template"]["spec"]["containers"][0]["resources"]["limits"]
    chosen = render(train("scaling.gpu=true"), KubernetesOptions())
    assert GPU in json.dumps(chosen)
    assert 'nvidia.com/gpu"' not in json.dumps(render(train(), KubernetesOptions()))


def test_pods_have_the_shape_that_is_asked_for() -> None:
    shape = KubernetesOptions("gpu", cpu="32", memory="400Gi", gpus_per_pod=4)
    made = render(train("scaling.gpu=true", "scaling.workers=[4, 6]", "cache.max_gb=20"), shape)
    group = made["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    assert [group[k] for k in ("replicas", "minReplicas", "maxReplicas")] == [1, 1, 2]
    assert group["rayStartParams"]["num-cpus"] == "4"
    pod = group["template"]["spec"]
    resources = pod["containers"][0]["resources"]
    assert resources["requests"] == {"cpu": "32", "memory": "400Gi", "ephemeral-storage": "42Gi"}
    assert resources["limits"] == {"memory": "400Gi", "ephemeral-storage": "42Gi", GPU: 4}
    assert pod["volumes"][0] == {"name": "cache", "emptyDir": {"sizeLimit": "22Gi"}}


def test_an_overlay_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rendered by kubectl, images included; settings of the RayJob may lie beside it."""
    monkeypatch.setenv("PATH", f"{BIN}:{os.environ['PATH']}")
    own = tmp_path / "mine"
    own.mkdir()
    lines = [
        f"resources: [{os.path.relpath(ROOT / 'k8s/overlays/gpu', own)}]",
        "images: [{name: era, newName: registry/mine, newTag: '7'}]",
        "patches:",
        "  - target: {kind: RayCluster}",
        "    patch: |-",
        "      - op: add",
        "        path: /spec/workerGroupSpecs/0/template/spec/runtimeClassName",
        "        value: nvidia",
    ]
    (own / "kustomization.yaml").write_text("\n".join(lines))
    (own / "rayjob.yaml").write_text("spec: {activeDeadlineSeconds: 60}\n")
    made = render(train("scaling.gpu=true"), KubernetesOptions(str(own)))
    assert problems(made) == []
    group = made["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    assert group["template"]["spec"]["runtimeClassName"] == "nvidia"
    assert group["template"]["spec"]["containers"][0]["image"] == "registry/mine:7"
    assert made["spec"]["activeDeadlineSeconds"] == 60
    (own / "kustomization.yaml").write_text("resources: [nowhere]\n")
    with pytest.raises(UserError, match=r"--overlay .*mine: .*nowhere"):
        render(train(), KubernetesOptions(str(own)))


def test_what_other_clusters_need_can_be_patched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenShift's users, Istio's label, IPv6 and the network's interface, as the documents say."""
    monkeypatch.setenv("PATH", f"{BIN}:{os.environ['PATH']}")
    paths = "/spec/headGroupSpec", "/spec/workerGroupSpecs/0"
    change: list[Object] = [
        {"op": "remove", "path": f"{path}/template/spec/securityContext/{user}"}
        for path in paths
        for user in ("runAsUser", "fsGroup")
    ]
    add: dict[str, object] = {
        f"{p}/template/metadata/labels/sidecar.istio.io~1inject": "false" for p in paths
    }
    add[f"{paths[0]}/rayStartParams/dashboard-host"] = "::"
    interface = {"name": "GLOO_SOCKET_IFNAME", "value": "eth1"}
    add[f"{paths[1]}/template/spec/containers/0/env/-"] = interface
    change += [{"op": "add", "path": path, "value": value} for path, value in add.items()]
    base = os.path.relpath(ROOT / "k8s/base", tmp_path.resolve())
    patch = {"target": {"kind": "RayCluster"}, "patch": yaml.safe_dump(change)}
    own = yaml.safe_dump({"resources": [base], "patches": [patch]})
    (tmp_path / "kustomization.yaml").write_text(own)
    made = render(train(), KubernetesOptions(str(tmp_path), "era:1"))
    assert problems(made) == []
    for pod in pods(made):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert {"runAsUser", "fsGroup"}.isdisjoint(pod["securityContext"])
    (worker,) = made["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert interface in worker["template"]["spec"]["containers"][0]["env"]
    assert worker["template"]["metadata"]["labels"]["sidecar.istio.io/inject"] == "false"


def test_a_verb_without_configuration_keeps_the_template() -> None:
    values = {"source": "s3://b/raw", "dest": "s3://b/dpdd"}
    made = render(urls_command("preprocess", ["--x"], values, False), KubernetesOptions())
    assert made["spec"]["rayClusterSpec"] == cluster("base")["spec"]
    assert made["metadata"]["name"] == "era-preprocess-dpdd-4e3c3f"
    other = urls_command("preprocess", ["--x"], {"dest": "s3://c/dpdd"}, False)
    assert render(other, KubernetesOptions())["metadata"]["name"] != made["metadata"]["name"]
    long = urls_command("preprocess", [], {"dest": f"s3://b/{'x' * 40}"}, False)
    with pytest.raises(UserError, match=r"62 characters; RayJob takes 47 \(--name\)"):
        render(long, KubernetesOptions())
    with pytest.raises(UserError, match="dest=/data is a path of one machine"):
        render(urls_command("preprocess", [], {"dest": "/data"}, False), KubernetesOptions())


@pytest.mark.parametrize(
    ("overlay", "overrides", "options", "message"),
    [
        ("kueue", ["scaling.workers=[1, 4]"], {}, "gang scheduling"),
        ("local", ["scaling.gpu=true"], {}, "needs 1 GPU per worker.* have 0"),
        ("gpu", [f"run.name={'x' * 44}"], {}, "48 characters; RayJob takes 47"),
        ("gpu", [], {"name": "Big_Name"}, "must be small letters"),
        ("gpu", [], {"namespace": "my space"}, "the namespace 'my space' must be small letters"),
        ("gpu", [], {"image": "user:secret1@h/era"}, "^--image: expected an image such as"),
        ("gpu", ["run.root=/runs"], {}, "run.root=/runs is a path of one machine"),
        ("cloud", [], {}, "expected one of base, gpu, kueue, local, spot, or a folder"),
        ("../base", [], {}, "expected one of base, gpu, kueue, local, spot"),
    ],
)
def test_contradictions_are_refused_with_the_reason(
    overlay: str, overrides: list[str], options: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        job(overlay, *overrides, **options)


def test_memory_of_the_verbs_own_is_not_a_pods() -> None:
    with pytest.raises(UserError, match=r"--memory 8: of a worker's pod, .* goes behind --"):
        job("base", memory="8")


def test_what_jobs_need_of_a_namespace_can_be_applied_alone() -> None:
    made = subprocess.run(
        [BIN / "kubectl", "kustomize", ROOT / "k8s" / "namespace"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    objects = list(yaml.safe_load_all(made))
    kinds = sorted(one["kind"] for one in objects)
    assert kinds == ["Namespace", "NetworkPolicy", "ServiceAccount", "ServiceAccount"]
    accounts = {one["metadata"]["name"] for one in objects if one["kind"] == "ServiceAccount"}
    for overlay in OVERLAYS:
        assert {pod["serviceAccountName"] for pod in pods(job(overlay))} <= accounts


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_job_may_be_suspended(overlay: str) -> None:
    settings = job(overlay)["spec"]
    assert settings["shutdownAfterJobFinishes"] is True
    assert settings["ttlSecondsAfterFinished"] > 0
    assert "deletionStrategy" not in settings


def test_only_kueues_jobs_begin_suspended() -> None:
    queued, plain = job("kueue"), job("gpu")
    label = "kueue.x-k8s.io/queue-name"
    assert queued["metadata"]["labels"][label] == cluster("kueue")["metadata"]["labels"][label]
    assert queued["spec"]["suspend"] is True
    assert "suspend" not in plain["spec"]


def test_dry_run_prints_yaml_and_nothing_else(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipeline", "submit", "train", "--config", "tiny"]
    command += ["run.root=s3://b/runs", "data.train=s3://b/t", "--kubernetes", "--dry-run"]
    bare = {"PATH": str(tmp_path), "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}  # no kubectl
    done = subprocess.run(command, capture_output=True, text=True, env=bare, check=True)
    made = yaml.safe_load(done.stdout)
    assert made["kind"] == "RayJob"
    assert made["spec"]["entrypoint"].startswith("era train --config tiny run.root=s3://b/runs")
    assert "&id" not in done.stdout  # no anchors
    missing = subprocess.run(
        command[:-1], capture_output=True, text=True, env=bare, check=False, timeout=60
    )
    assert missing.returncode == 2
    assert "kubectl is not installed" in missing.stderr


@pytest.mark.parametrize("config", ["light", "base", "paper"])
def test_recipes_for_gpus_become_jobs(config: str) -> None:
    command = [sys.executable, "-m", "pipeline", "submit", "train", "--config", config]
    command += ["run.root=s3://b/runs", "data.train=s3://b/t", "data.val=s3://b/v"]
    command += ["--kubernetes", "--overlay", "gpu", "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    made = yaml.safe_load(done.stdout)
    assert problems(made) == []
    assert made["spec"]["entrypoint"].startswith(f"era train --config {config} ")
    group = made["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    assert group["replicas"] == load_train_config(config).scaling.workers.most
    assert group["template"]["spec"]["containers"][0]["resources"]["limits"][GPU] == 1


# `era submit --kubernetes` with the real kubectl; the server and the operator are played.

RUNNING = {"jobDeploymentStatus": "Running", "jobId": "a", "rayClusterName": "c"}
DONE = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
# In Ray's words, held below.
BAD = {
    "jobDeploymentStatus": "Failed",
    "jobStatus": "FAILED",
    "reason": "AppFailed",
    "message": "Job entrypoint command failed with exit code 2, last available logs (truncated",
}


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

    def __init__(
        self, api: Api, *steps: Object, new: bool = True, after: Callable[[], bool] = lambda: True
    ) -> None:
        super().__init__(daemon=True)
        self.after = after
        self.api, self.steps, self.new = api, steps, new
        self.start()

    def run(self) -> None:
        while not self.after():
            time.sleep(0.05)
        while self.new and "status" in self.api.jobs.get("era-tiny", {"status": {}}):
            time.sleep(0.05)
        for step in self.steps:
            time.sleep(0.8)
            with self.api.log.open("ab") as file:
                file.write(step.pop("log", "").encode())
            self.api.down = step.pop("down", 0)
            self.api.put("era-tiny", **step)


def run(rayjob: Object) -> tuple[Outcome, str]:
    lines: list[str] = []
    outcome = submit_to_kubernetes(rayjob, lines.append, poll=0.2, patience=20)
    return outcome, "".join(lines)


def test_what_is_played_is_shown_on_a_real_cluster() -> None:
    text = "".join(path.read_text() for path in (ROOT / "tests" / "cluster").glob("test_*.py"))
    assert [name for name in SHOWN_BY.values() if f"def {name}(" not in text] == []


def test_a_rayjob_is_followed_to_its_own_exit_code(api: Api) -> None:
    """Through a server that is down for a while; the same command then starts it again."""
    first = {**RUNNING, "log": "one\r1 %\r2 %\ntwo\nha"}  # a carriage return ends no line
    Operator(api, first, {"down": 4}, {"log": "lf\nthree\n", **BAD})
    outcome, shown = run(job("base"))
    assert (outcome.exit_code, outcome.state) == (2, "FAILED")
    assert shown == "one\r1 %\r2 %\ntwo\nhalf\nthree\n"
    api.log.write_text("again\n")
    asked = len(api.asked)
    Operator(api, {**RUNNING, **DONE})
    outcome, shown = run(job("base"))
    assert (outcome.exit_code, shown) == (0, "again\n")
    place = "/apis/ray.io/v1/namespaces/era/rayjobs"
    assert f"DELETE {place}/era-tiny" in api.asked[asked:]
    assert f"POST {place}" in api.asked[asked:]


def test_a_finished_runs_result_outlives_its_pods(api: Api, tmp_path: Path) -> None:
    """Whether the head is gone when its job's log is read, or the same command comes later."""
    folder = tmp_path / "runs" / "tiny"
    result = {"run": str(folder), "step": 7, "best": "x", "metrics": {"val/psnr": None}}
    write_result(str(folder), {**result, "metrics": {"val/psnr": float("nan")}})
    command = [sys.executable, "-m", "pipeline", "submit", "train", "--kubernetes", "--shared"]
    command += ["--image", "registry/era:1", f"run.root={tmp_path}/runs", "data.train=/train"]
    Operator(api, dict(DONE))
    for flags in (["--json"], []):
        done = subprocess.run([*command, *flags], capture_output=True, text=True, check=True)
        if flags:
            told = json.loads(done.stdout)
            assert (told["state"], told["result"]) == ("SUCCEEDED", result)
    assert f"era-tiny has ended, and its run is finished: {folder}" in done.stderr
    assert api.asked.count("POST /apis/ray.io/v1/namespaces/era/rayjobs") == 1


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


def test_a_refused_rayjob_ends(api: Api) -> None:
    api.jobs["era-tiny"] = {**job("base"), "status": dict(RUNNING)}
    refused = {"jobDeploymentStatus": "ValidationFailed", "message": "not allowed to be suspended"}
    Operator(api, refused, new=False)
    outcome, _ = run(job("base"))
    assert (outcome.exit_code, outcome.state) == (2, "INVALID")
    assert "not allowed to be suspended; its pods may still run" in outcome.message
    Operator(api, {**RUNNING, **DONE})  # the same command starts it again
    assert run(job("base"))[0].exit_code == 0


@pytest.mark.parametrize("overlay", ["kueue", "base"])
def test_a_queued_or_suspended_rayjob_is_waited_for(
    api: Api,
    overlay: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Through the lives of two drivers, each with a log of its own."""
    wanted = job(overlay)
    api.jobs["era-tiny"] = {**wanted, "status": {"jobDeploymentStatus": "Suspended"}}
    again = {"jobDeploymentStatus": ""}  # of a resumed one, for a moment
    monkeypatch.setattr(watch, "UNSEEN_SECONDS", 0.0)
    states = again, {"jobDeploymentStatus": "Initializing"}, {**RUNNING, **DONE}
    Operator(api, *states, new=False, after=lambda: "Suspended" in caplog.text)
    with caplog.at_level("INFO", "era"):
        assert run(wanted)[0].exit_code == 0
    assert ("continues after `kubectl -n era patch rayjob" in caplog.text) is (overlay == "base")
    assert "no operator" not in caplog.text


def test_a_rayjob_that_no_operator_takes_up_is_given_up(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watch, "UNSEEN_SECONDS", 0.5)
    with caplog.at_level("INFO", "era"):
        outcome = submit_to_kubernetes(job("base"), print, poll=0.2, patience=10)
    assert (outcome.state, outcome.exit_code) == ("LOST", 1)
    assert "kubectl -n era delete rayjob era-tiny" in outcome.message
    assert "does it watch namespace era?" in caplog.text
    assert "RayJob era-tiny: new" in caplog.text


def test_a_head_whose_node_is_gone_is_given_up(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Kubernetes deletes the pod but cannot end it; KubeRay before 1.7 would wait forever."""
    monkeypatch.setattr(watch, "SILENT_SECONDS", 1.0)
    monkeypatch.setattr(watch, "GONE_SECONDS", 3.0)
    api.jobs["era-tiny"] = {**job("base"), "status": dict(RUNNING)}
    api.log.write_text("step 1\n")

    def operate() -> None:
        while "on node n2 does not answer" not in caplog.text:
            time.sleep(0.1)
        api.head_deleted = True
        Operator(api, {**RUNNING, **DONE})

    def write(text: str) -> None:  # the log was read once
        api.reachable = False

    threading.Thread(target=operate, daemon=True).start()
    outcome = submit_to_kubernetes(job("base"), write, poll=0.2, patience=20)
    assert outcome.exit_code == 0
    assert api.asked.count("POST /apis/ray.io/v1/namespaces/era/rayjobs") == 1


def test_what_keeps_pods_from_running_is_shown(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    starting = {"jobDeploymentStatus": "Initializing", "rayClusterName": "era-tiny-x7k2p"}
    api.jobs["era-tiny"] = {**job("base"), "status": starting}
    wrong = {"reason": "ErrImageNeverPull", "message": 'image "er" is not present'}
    room = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    api.head = {
        "conditions": [{**room, "message": "0/2 nodes are available"}],
        "containerStatuses": [
            {"state": {"waiting": wrong}},
            {"state": {"waiting": {"reason": "ContainerCreating"}}},
        ],
    }
    account = {"reason": "AutoscalerServiceAccountNotFound", "message": "no era-head"}
    of_cluster = {"kind": "RayCluster", "name": "era-tiny-x7k2p"}
    of_an_earlier = {"kind": "RayJob", "name": "era-tiny", "uid": "another"}
    of_another = {"kind": "Pod", "name": "era-tiny2-head"}
    about = [(of_cluster, account), (of_another, {"reason": "Alien"})]
    about += [(of_an_earlier, {"reason": "Earlier"})]
    api.events = [warning(f"event-{i}", of, said) for i, (of, said) in enumerate(about)]
    seen = "AutoscalerServiceAccountNotFound"
    Operator(api, {**RUNNING, **DONE}, new=False, after=lambda: seen in caplog.text)
    with caplog.at_level("WARNING", "era"):
        assert run(job("base"))[0].exit_code == 0
    for line in (
        "pod head-pod: Unschedulable: 0/2 nodes are available",
        'pod head-pod: ErrImageNeverPull: image "er" is not present',
        "raycluster era-tiny-x7k2p: AutoscalerServiceAccountNotFound: no era-head",
    ):
        assert caplog.text.count(line) == 1
    assert "Alien" not in caplog.text
    assert "Earlier" not in caplog.text
    assert "ContainerCreating" not in caplog.text


def test_a_pod_that_has_found_its_node_waits_for_none(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    """Kubernetes keeps the event for an hour, and it would be shown to whoever follows later."""
    running = {"jobDeploymentStatus": "Running", "rayClusterName": "head"}
    api.jobs["era-tiny"] = {**job("base"), "status": running}
    of = {"kind": "Pod", "name": HEAD}
    said = {"reason": "FailedScheduling", "message": "0/2 nodes are available"}
    cluster = {"kind": "RayCluster", "name": "head"}
    api.events = [warning("a", of, said), warning("b", cluster, {"reason": "Seen"})]
    Operator(api, {**RUNNING, **DONE}, new=False, after=lambda: "Seen" in caplog.text)
    with caplog.at_level("WARNING", "era"):
        run(job("base"))
    assert "FailedScheduling" not in caplog.text


def warning(name: str, of: Object, said: Object) -> Object:
    event = {"kind": "Event", "apiVersion": "v1", "metadata": {"name": name}}
    return {**event, "involvedObject": of, **said}


def test_another_image_or_overlay_is_another_job(api: Api) -> None:
    api.jobs["era-tiny"] = {**job("base", image="registry/era:1"), "status": dict(RUNNING)}
    with pytest.raises(UserError, match="image registry/era:1 instead of registry/era:2; delete"):
        run(job("base", image="registry/era:2"))
    wanted = job("local", image="registry/era:1")
    with pytest.raises(UserError, match="overlay base instead of local; delete it first"):
        run(wanted)


def test_a_rayjob_that_is_being_deleted_is_not_followed(api: Api) -> None:
    dying = {**job("base"), "status": dict(RUNNING)}
    dying["metadata"] = {**dying["metadata"], "deletionTimestamp": "2026-01-01T00:00:00Z"}
    api.jobs["era-tiny"] = dying
    threading.Timer(1, lambda: api.jobs.pop("era-tiny")).start()
    Operator(api, {**RUNNING, **DONE})
    assert run(job("base"))[0].exit_code == 0
    assert [line for line in api.asked if line.startswith("POST")]


def test_kubectls_context_may_be_chosen(api: Api) -> None:
    api.jobs["era-tiny"] = {**job("base"), "status": {**RUNNING, **DONE}}
    with pytest.raises(UserError, match=r"context.*elsewhere"):
        submit_to_kubernetes(job("base"), lambda text: None, context="elsewhere")
    Operator(api, {**RUNNING, **DONE})
    assert submit_to_kubernetes(job("base"), lambda t: None, context="c", poll=0.2).exit_code == 0


def test_a_lost_head_is_started_again(
    api: Api, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if its node took the operator along, and the server does not answer for a moment."""
    caplog.set_level("INFO", "era")
    monkeypatch.setattr("pipeline.cluster.waiting.SAY_SECONDS", 1.0)
    api.jobs["era-tiny"] = {**job("base"), "status": dict(RUNNING)}
    api.deletion = 4.0
    lost = {"jobDeploymentStatus": "Failed", "reason": "JobStatusCheckTimeoutExceeded"}
    Operator(api, lost, new=False)

    def fails() -> None:
        while not any(line.startswith("DELETE") for line in api.asked):
            time.sleep(0.05)
        time.sleep(1.5)
        api.down = 1

    threading.Thread(target=fails, daemon=True).start()
    Operator(api, {**RUNNING, **DONE})
    assert run(job("base"))[0].exit_code == 0
    assert len([line for line in api.asked if line.startswith("POST")]) == 1
    assert "waiting for the deletion of RayJob era-tiny" in caplog.text


def test_what_another_command_has_started_instead_is_left_alone(api: Api) -> None:
    """Of two that follow a run, the second sees the lost head after the first has replaced it."""
    there = {**job("base"), "status": dict(RUNNING)}
    there["metadata"]["uid"] = "two"
    api.jobs["era-tiny"] = there
    one = RayJob("era-tiny", "era")
    _start(one, job("base"), 0.2, lost="one")
    assert not [line for line in api.asked if line.startswith("DELETE")]
    _start(one, job("base"), 0.2, lost="two")
    assert [line.split()[0] for line in api.asked if line.split()[0] != "GET"] == ["DELETE", "POST"]


def test_a_context_that_is_chosen_meanwhile_changes_nothing(api: Api, tmp_path: Path) -> None:
    api.jobs["era-tiny"] = {**job("base"), "status": dict(RUNNING)}
    one = RayJob("era-tiny", "era")
    config = json.loads((tmp_path / "kubeconfig").read_text())
    config["contexts"].append({"name": "other", "context": {"cluster": "none", "user": ""}})
    (tmp_path / "kubeconfig").write_text(json.dumps({**config, "current-context": "other"}))
    found = one.read()
    assert found is not None and found.status.job_id == "a"


def test_a_log_that_may_not_be_read_is_said_and_its_head_not_given_up(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watch, "SILENT_SECONDS", 0.5)
    monkeypatch.setattr(watch, "GONE_SECONDS", 0.1)
    api.jobs["era-tiny"] = {**job("base"), "status": dict(RUNNING)}
    api.reachable, api.head_deleted = False, True
    Operator(api, dict(RUNNING), dict(RUNNING), dict(RUNNING), {**RUNNING, **DONE}, new=False)
    assert run(job("base"))[0].exit_code == 0
    assert "its log is not shown (kubectl exec: " in caplog.text
    assert not [line for line in api.asked if line.startswith("DELETE")]


def test_a_limit_of_processors_is_never_below_the_request() -> None:
    for limit, cpu, after in (("500m", "4", "4"), ("8", "4", "8"), (16, "4", 16)):
        resources: Object = {"requests": {}, "limits": {"cpu": limit}}
        _ask(resources, cpu)
        assert resources == {"requests": {"cpu": cpu}, "limits": {"cpu": after}}


def test_a_deletion_that_does_not_end_is_said(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.submit.kubernetes.DELETION_SECONDS", 2.0)
    api.jobs["era-tiny"] = {**job("base"), "status": {**RUNNING, **DONE}}
    api.deletion = 60.0
    with pytest.raises(UserError, match="is KubeRay's operator running"):
        run(job("base"))
    assert not [line for line in api.asked if line.startswith("POST")]


def test_what_an_older_kuberay_lacks_is_left_out(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    api.fields.remove("preRunningDeadlineSeconds")
    Operator(api, {**RUNNING, **DONE})
    assert run(job("base"))[0].exit_code == 0
    assert "this cluster's KubeRay has no preRunningDeadlineSeconds; left out" in caplog.text
    assert "preRunningDeadlineSeconds" not in api.jobs["era-tiny"]["spec"]
    assert "activeDeadlineSeconds" in api.jobs["era-tiny"]["spec"]


def test_errors_of_the_user_are_not_retried() -> None:
    for overlay in OVERLAYS:
        assert job(overlay)["spec"]["backoffLimit"] == 0


@pytest.mark.full
@pytest.mark.parametrize(
    ("number", "option", "code"),
    [(signal.SIGINT, [], 130), (signal.SIGTERM, ["--stop-on-exit"], 143)],
)
def test_leaving_says_what_becomes_of_the_rayjob(
    api: Api, number: signal.Signals, option: list[str], code: int
) -> None:
    command = [sys.executable, "-m", "pipeline", "submit", "train", *option, "--kubernetes"]
    command += ["run.root=s3://b/runs", "data.train=s3://b/train", "--image", "registry/era:1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while "era-tiny" not in api.jobs:
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert any(line.startswith("DELETE") for line in api.asked) is bool(option)
    assert ("is being deleted" if option else "continues: the same command follows it") in err


def test_exit_codes_are_read_in_rays_own_words() -> None:
    from ray.dashboard.modules.job import job_supervisor

    assert 'f"failed with exit code {return_code}' in inspect.getsource(job_supervisor)


def test_the_autoscaler_is_told_in_rays_own_words() -> None:
    """How long a pod may wait for its node before it is replaced."""
    from ray.autoscaler.v2.instance_manager import config

    told = cluster("base")["spec"]["autoscalerOptions"]["env"]
    assert [one["name"] for one in told] == ["RAY_AUTOSCALER_RECONCILE_ALLOCATE_STATUS_TIMEOUT_S"]
    assert f'"{told[0]["name"]}"' in inspect.getsource(config)


def test_settings_of_the_users_own_overlay(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("resources: []\n")
    own = tmp_path / "rayjob.yaml"
    base, kueue = cluster_of("base"), cluster_of("kueue")
    assert job_of(str(tmp_path), base) == job_of("base", base)
    made_from = job_of(str(tmp_path), kueue)  # a folder that extends the packaged overlay
    assert made_from == job_of("kueue", kueue)
    assert made_from["spec"]["suspend"] and made_from["metadata"]["labels"][watch.QUEUE] == "era"
    own.write_text("spec: {backoffLimit: 7}\n")
    assert job_of(str(tmp_path), base)["spec"]["backoffLimit"] == 7
    with pytest.raises(UserError, match="annotation era/job: expected one of base"):
        job_of(str(tmp_path), {"metadata": {"annotations": {"era/job": "../x"}}})
    for text in ("[1]", "null", "a: [", "!!python/name:os.system ''", "[" * 5000):
        own.write_text(text)
        with pytest.raises(UserError, match=r"rayjob\.yaml: (expected a mapping|not YAML)"):
            job_of(str(tmp_path), base)
    own.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"rayjob\.yaml: not YAML"):
        job_of(str(tmp_path), base)


def test_a_cluster_of_another_build_and_odd_amounts_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{BIN}:{os.environ['PATH']}")
    (tmp_path / "kustomization.yaml").write_text("resources: [cluster.yaml]\n")
    head = "apiVersion: ray.io/v1\nkind: RayCluster\nmetadata: {name: era}\nspec: "
    for spec in ("{}", "{workerGroupSpecs: []}", "{workerGroupSpecs: [{template: {spec: 3}}]}"):
        (tmp_path / "cluster.yaml").write_text(f"{head}{spec}\n")
        with pytest.raises(UserError, match="is not built like the packaged base"):
            render(train(), KubernetesOptions(str(tmp_path), "era:1"))
    odd = cluster("base")
    odd["spec"]["rayVersion"] = "next"
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(odd))
    with pytest.raises(UserError, match="is not built like the packaged base"):
        render(train(), KubernetesOptions(str(tmp_path), "era:1"))
    for options in ({"cpu": "many"}, {"memory": "48 GB"}):
        with pytest.raises(UserError, match="expected an amount such as 8, 500m or 48Gi"):
            render(train(), KubernetesOptions("base", "era:1", **options))
