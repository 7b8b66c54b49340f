"""The interactive cluster, through its job server: the users' day (`make test-cluster`)."""

from __future__ import annotations

import time

import pytest

from cluster.real_cluster import READY, era, kubectl

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]
Dashboard = tuple[str, dict[str, str]]
SPLITS = "data.train=s3://era/shards/train", "data.val=s3://era/shards/val"


def submit(dashboard: Dashboard, verb: str, *arguments: str) -> str:
    address, environment = dashboard
    return era(environment, "submit", verb, "--address", address, *arguments, log=True)


def test_doctor_finds_nothing_wrong(dashboard: Dashboard) -> None:
    address, environment = dashboard
    data = ["--data", "s3://era/shards/train"]
    era(environment, "doctor", "--address", address, "--bucket", "s3://era/runs", *data)


def test_it_takes_jobs_after_a_worker_has_gone(dashboard: Dashboard) -> None:
    """Ray counts nodes that have left, and lists them no more."""
    for name in ("first", "second"):
        train = ["--config", "tiny", *SPLITS, "scaling.workers=1", "train.steps=20"]
        submit(dashboard, "train", *train, f"run.name={name}", "run.root=s3://era/interactive")
        end = time.monotonic() + 2 * READY  # idle for two minutes
        chosen = "ray.io/node-type=worker,ray.io/cluster=era"
        while kubectl("get", "pods", "-l", chosen, "-o", "name").strip():
            assert time.monotonic() < end, "the idle worker never goes"
            time.sleep(1)


def test_a_sweep_grows_with_the_cluster(dashboard: Dashboard) -> None:
    """Two workers, though there is none when it begins; and all trials fit their memory."""
    sweep = ["--config", "tiny", *SPLITS, "run.name=sweep", "run.root=s3://era/interactive"]
    said = submit(dashboard, "tune", *sweep, "train.steps=40")
    assert " 2 at once" in said and "OutOfMemory" not in said and "set aside" not in said


def test_an_elastic_run_after_a_sweep_starts_on_what_is_there(dashboard: Dashboard) -> None:
    """What the sweep's trials have asked Ray's coordinator for is not waited for."""
    train = ["--config", "tiny", *SPLITS, "scaling.workers=[1, 2]", "train.steps=20"]
    elastic = [*train, "run.name=elastic", "run.root=s3://era/interactive"]
    said = submit(dashboard, "train", *elastic)
    assert "step 20 of 20" in said and "infinite retries" not in said
