"""What only a real cluster shows (`make test-cluster`): states, deletion, suspension, lost pods."""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from real_cluster import (
    ENVIRONMENT,
    IMAGE,
    READY,
    ROOT,
    Submitted,
    checkpoints,
    era,
    forwarded,
    kubectl,
)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]
Submit = Callable[..., Submitted]
LONG = "train.steps=6000", "checkpoint.every=100000"  # saved when something happens, or never


@pytest.fixture(scope="session")
def cluster() -> None:
    """The local overlay, applied; its interactive cluster removed again, which holds processors."""
    if not ENVIRONMENT.get("KUBECONFIG"):
        pytest.fail("no cluster is at hand: set KUBECONFIG")
    if "rayjobs" not in kubectl("get", "crd", "-o", "name", check=False):
        pytest.fail("the cluster that KUBECONFIG names does not answer, or has no KubeRay")
    kubectl("create", "namespace", "era", check=False)
    key, secret = "AWS_ACCESS_KEY_ID=era", f"AWS_SECRET_ACCESS_KEY={secrets.token_hex(20)}"
    literals = [f"--from-literal={key}", f"--from-literal={secret}"]
    kubectl("create", "secret", "generic", "era-s3", *literals, check=False)
    kubectl("apply", "-k", str(ROOT / "k8s/overlays/local"))
    kubectl("rollout", "status", "deployment/era-s3", f"--timeout={READY}s")
    kubectl("delete", "raycluster", "era", "--ignore-not-found", "--wait=true")


@pytest.fixture(scope="session")
def bucket(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which this machine reaches the overlay's S3 server; shards are in it."""
    with forwarded("service/era-s3", 9000) as port:
        environment = {**ENVIRONMENT, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            path = f'go-template={{{{index .data "{name}" | base64decode}}}}'
            environment[name] = kubectl("get", "secret", "era-s3", "-o", path)
        environment["AWS_REQUEST_CHECKSUM_CALCULATION"] = "when_required"
        environment["AWS_RESPONSE_CHECKSUM_VALIDATION"] = "when_required"
        pairs = str(tmp_path_factory.mktemp("photographs") / "pairs")
        era(environment, "synthesize", "--photos", "bundled", "--dest", pairs, "--pairs", "24")
        shards = ["--source", pairs, "--dest", "s3://era/shards"]
        era(environment, "preprocess", "--dataset", "dpdd", *shards)
        yield environment


@pytest.fixture
def submit(bucket: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Submitted]]:
    """Starts a run of a name of its own; whatever was started is removed at the end."""
    started = []

    def start(*overrides: str, image: str = IMAGE, name: str = "") -> Submitted:
        name = name or f"test-{secrets.token_hex(3)}"
        started.append(Submitted(tmp_path, name, *overrides, image=image))
        return started[-1]

    yield start
    for one in started:
        one.end()


def test_a_run_from_the_bucket_and_back(
    submit: Submit, bucket: dict[str, str], tmp_path: Path
) -> None:
    one = submit("train.steps=20")
    assert one.process.wait(600) == 0, one.log.read_text()
    one.until('"state": "SUCCEEDED"', 1)
    assert checkpoints(bucket, one) == [20]
    era(bucket, "runs", "pull", f"s3://era/runs/{one.name}", "--to", str(tmp_path / "bundle"))
    assert (tmp_path / "bundle" / "COMMIT").is_file()


def test_a_suspended_rayjob_saves_and_goes_on(submit: Submit, bucket: dict[str, str]) -> None:
    one = submit(*LONG)
    one.trains()
    head = one.pod("head")
    patch(one, '{"spec": {"suspend": true}}')
    one.until("Suspended; its pods save and end")
    kubectl("wait", head, "--for=delete", "--timeout=300s", check=False)
    (saved,) = checkpoints(bucket, one)
    patch(one, '{"spec": {"suspend": false}}')
    one.until(f"resumed at step {saved}")


def test_a_deleted_rayjob_saves(submit: Submit, bucket: dict[str, str]) -> None:
    one = submit(*LONG)
    one.trains()
    head = one.pod("head")
    kubectl("delete", "rayjob", one.rayjob, "--wait=true")
    kubectl("wait", head, "--for=delete", "--timeout=300s", check=False)
    assert len(checkpoints(bucket, one)) == 1
    assert one.process.wait(60) == 143


def test_the_next_head_resumes(submit: Submit, bucket: dict[str, str]) -> None:
    one = submit(*LONG)
    for life in (1, 2):
        one.trains(life)
        kubectl("delete", one.pod("head"), "--wait=true")
        assert len(checkpoints(bucket, one)) >= 1
        one.until("resumed at step", times=life)
    assert one.status("jobDeploymentStatus") == "Running"


def test_a_drained_workers_pod_goes_after_its_checkpoint(
    submit: Submit, bucket: dict[str, str]
) -> None:
    one = submit(*LONG)
    one.trains()
    kubectl("delete", one.pod("worker"), "--wait=true")
    (saved,) = checkpoints(bucket, one)
    one.until(f"resumed at step {saved}")


def test_a_missing_image_is_said(submit: Submit) -> None:
    one = submit(image="eraa")
    one.until("ErrImageNeverPull")


def test_another_image_is_another_job(submit: Submit) -> None:
    one = submit(*LONG)
    one.until("applied in namespace")
    other = submit(*LONG, image="era:2", name=one.name)
    assert other.process.wait(60) == 2
    other.until("instead of era:2", 1)


@pytest.mark.lost_node
def test_a_run_whose_heads_node_is_lost_goes_on(submit: Submit) -> None:
    """LOSE_NODE takes the network from the second node, RETURN_NODE gives it back."""
    first, second = kubectl("get", "nodes", "-o", "name").split()[:2]
    kubectl("cordon", first)
    try:
        one = submit("train.steps=20000", "checkpoint.every=50")
        one.until("Initializing")
        kubectl("uncordon", first)
        one.trains()
        assert second.removeprefix("node/") in kubectl("get", one.pod("head"), "-o", "wide")
        command("LOSE_NODE")
        one.until("does not answer")
        one.until("resumed at step", 900)
    finally:
        kubectl("uncordon", first)
        command("RETURN_NODE")


def patch(one: Submitted, change: str) -> None:
    kubectl("patch", "rayjob", one.rayjob, "--type=merge", "-p", change)


def command(name: str) -> None:
    subprocess.run(ENVIRONMENT[name], shell=True, check=True, timeout=60)
