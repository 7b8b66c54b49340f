"""What only a real cluster shows (`make test-cluster`): states, deletion, suspension, lost pods."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.real_cluster import READY, Submitted, checkpoints, command, era, kubectl

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]
Submit = Callable[..., Submitted]
LONG = "train.steps=6000", "checkpoint.every=100000"  # saved when something happens, or never


def test_a_run_from_the_bucket_and_back(
    submit: Submit, bucket: dict[str, str], tmp_path: Path
) -> None:
    one = submit("train.steps=20")
    assert one.process.wait(600) == 0, one.log.read_text()
    one.until('"state": "SUCCEEDED"', 1)
    assert checkpoints(bucket, one) == [20]
    era(bucket, "runs", "pull", f"s3://era/runs/{one.name}", "--to", str(tmp_path / "bundle"))
    assert (tmp_path / "bundle" / "COMMIT").is_file()
    # The same command later, when the pods are gone: the result, and no new ones for it.
    kubectl("delete", "raycluster", one.status("rayClusterName"), "--wait=true")
    result = json.loads(era(bucket, *one.command))["result"]
    assert (result["run"], result["step"]) == (f"s3://era/runs/{one.name}", 20)
    assert not kubectl("get", "raycluster", "-o", "name").strip()


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
def test_a_run_whose_heads_node_is_lost_goes_on(submit: Submit, bucket: dict[str, str]) -> None:
    """LOSE_NODE takes the network from the second node, RETURN_NODE gives it back."""
    first, second = kubectl("get", "nodes", "-o", "name").split()[:2]
    kubectl("cordon", first)
    try:
        one = submit("train.steps=20000", "checkpoint.every=50")
        one.until("Initializing")
        kubectl("uncordon", first)
        one.trains()
        end = time.monotonic() + READY
        while not checkpoints(bucket, one):  # whatever is not saved is lost with the node
            assert time.monotonic() < end, one.log.read_text()
            time.sleep(1)
        assert second.removeprefix("node/") in kubectl("get", one.pod("head"), "-o", "wide")
        command("LOSE_NODE")
        one.until("does not answer")
        one.until("resumed at step", 900)
    finally:
        kubectl("uncordon", first)
        command("RETURN_NODE")


def patch(one: Submitted, change: str) -> None:
    kubectl("patch", "rayjob", one.rayjob, "--type=merge", "-p", change)
