"""What tests of a real cluster share: the local overlay, its bucket, RayJobs, a dashboard."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.real_cluster import (
    ENVIRONMENT,
    IMAGE,
    READY,
    ROOT,
    Submitted,
    era,
    forwarded,
    kubectl,
    secret,
)


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
            environment[name] = secret("era-s3", name)
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

    def start(
        *overrides: str, image: str = IMAGE, name: str = "", overlay: str = "local"
    ) -> Submitted:
        name = name or f"test-{secrets.token_hex(3)}"
        started.append(Submitted(tmp_path, name, *overrides, image=image, overlay=overlay))
        return started[-1]

    yield start
    for one in started:
        one.end()


@pytest.fixture(scope="module")
def dashboard(bucket: dict[str, str]) -> Iterator[tuple[str, dict[str, str]]]:
    """The interactive cluster's job server, and an environment that has its token."""
    kubectl("apply", "-k", str(ROOT / "k8s/overlays/local"))
    try:
        ready = ["--for=condition=HeadPodReady", f"--timeout={READY}s"]
        kubectl("wait", "raycluster", "era", *ready)
        with forwarded("service/era-head-svc", 8265) as port:
            yield (
                f"http://127.0.0.1:{port}",
                {
                    **ENVIRONMENT,
                    "RAY_AUTH_MODE": "token",
                    "RAY_AUTH_TOKEN": secret("era", "auth_token"),
                },
            )
    finally:
        kubectl("delete", "raycluster", "era", "--ignore-not-found", "--wait=true")
