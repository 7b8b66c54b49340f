"""Nodes that come and go. Last of all tests: it takes nodes of the session's cluster away."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from small_run import assert_same_run, assert_same_samples, config_of
from test_chain import start

from pipeline.cluster import (
    Growth,
    place_coordinator,
    require_resources,
    wait_for,
    withdraw_requests_of_dead_runs,
)
from pipeline.cluster.capacity import is_full
from pipeline.errors import UserError
from pipeline.runfolder import RunFolder
from pipeline.submit.jobs import _several_nodes
from pipeline.train import train
from pipeline.train.driver_channel import Event

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

THREE = "scaling.workers=3"  # on nodes of two processors: no node holds them all
THREE_SLOW = THREE, "train.global_batch=24", "train.patch=[40]"


@pytest.mark.full
@pytest.mark.parametrize(
    ("mode", "calm", "assert_same"),
    [
        ("strict", "undisturbed_strict", assert_same_run),
        ("auto", "undisturbed", assert_same_samples),
    ],
)
def test_elastic_run_shrinks_and_grows_with_its_nodes(
    mode: str,
    calm: str,
    assert_same: Callable[[dict[str, Any], dict[str, Any]], None],
    ray_nodes: Cluster,
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """A node is killed in mid-run and another one added: to the bit, nothing happened.

    Where gradients are not summed exactly, the samples are the same. What a run that was killed
    just before had asked for is not set aside for it any more.
    """
    from ray.train import ScalingConfig

    expected = request.getfixturevalue(calm)
    soon = partial(ScalingConfig, elastic_resize_monitor_interval_s=1.0)  # else once a minute
    monkeypatch.setattr("ray.train.ScalingConfig", soon)
    lines: list[str] = []
    done: list[str] = []
    ask_for("train-killed", 6)

    def listen(event: Event) -> None:
        """Validations wait for this to return."""
        if not lines:
            assert "train-killed" not in requests()
            ask_for("train-of-another", 0)
            withdraw_requests_of_dead_runs()  # while a trainer is alive
            assert "train-of-another" in requests()
        lines.append(event.line)
        if event.checkpoint and not done:
            done.append("killed")
            victim = next(n for n in ray_nodes.worker_nodes if n.node_id == node_of_a_worker())
            ray_nodes.remove_node(victim, allow_graceful=False)  # kill -9 of all that is on it
        elif event.checkpoint and "on 2 workers, resumed" in "".join(lines) and len(done) == 1:
            done.append("added")
            ray_nodes.add_node(num_cpus=2)
            wait_for(lambda: workers() == 3, "the third worker", 120)

    one_per_node = "scaling.workers=[2, 3]", "scaling.cpus_per_worker=2"
    config = config_of(tiny_data, tmp_path, "elastic", *one_per_node, f"train.deterministic={mode}")
    elastic = train(config, on_event=listen, gated=True)
    openings = re.findall(r"on (\d) workers, (from the start|resumed)", " ".join(lines))
    assert openings == [("3", "from the start"), ("2", "resumed"), ("3", "resumed")]
    assert len(RunFolder(elastic["run"]).lines("attempts.jsonl")) == 3  # each group has its own
    assert_same(expected, elastic)


@pytest.mark.full
def test_killed_node_changes_nothing(
    ray_nodes: Cluster,
    tiny_data: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither does it keep jobs from being sent to the cluster."""
    from ray.dashboard.utils import ray_address_to_api_server_url

    calm = train(config_of(tiny_data, tmp_path, "calm", *THREE_SLOW))
    struck: list[str] = []
    lines: list[str] = []

    def strike(event: Event) -> None:
        lines.append(event.line)
        if not struck:
            struck.append(node_of_a_worker())
        elif event.step >= 6 and len(struck) == 1:
            struck.append("gone")
            victim = next(n for n in ray_nodes.worker_nodes if n.node_id == struck[0])
            ray_nodes.remove_node(victim, allow_graceful=False)  # kill -9 of all that is on it

    lost = train(config_of(tiny_data, tmp_path, "lost", *THREE_SLOW), on_event=strike)
    ray_nodes.add_node(num_cpus=2)
    assert len(struck) == 2
    assert re.search(r"on 3 workers, resumed at step \d", " ".join(lines))
    assert_same_run(calm, lost)
    monkeypatch.setattr(logging.getLogger("era"), "propagate", True)
    assert _several_nodes(ray_address_to_api_server_url(ray_nodes.address))
    assert "does not list its nodes" not in caplog.text


@pytest.mark.full
def test_drained_node_leaves_a_checkpoint_in_time(
    ray_cluster: str, tiny_data: Path, tmp_path: Path
) -> None:
    long = "train.steps=4000", "checkpoint.every=4000", "train.global_batch=16", "train.patch=[48]"
    config = config_of(tiny_data, tmp_path, "drained", *long, "train.validate_every=0", THREE)
    process = start(config, tmp_path / "driver")
    try:
        assert process.stderr is not None
        assert any("training" in line for line in process.stderr)
        time.sleep(3)
        asked = time.monotonic()
        drain(ray_cluster, node_of_a_worker())
        folder = RunFolder(str(tmp_path / "drained"))
        while folder.latest_step() is None:
            assert time.monotonic() - asked < 60, "no checkpoint within the deadline"
            time.sleep(0.5)
        step = folder.latest_step()
        assert step is not None
        assert 0 < step < 4000
    finally:
        process.kill()
        process.wait()


@pytest.mark.full
def test_what_an_autoscaler_can_never_bring_is_refused(
    ray_cluster: str, tiny_data: Path, tmp_path: Path
) -> None:
    """The cluster's own state store, told what Ray's autoscaler tells it; the last test of all."""
    from ray._raylet import GcsClient
    from ray.core.generated.autoscaler_pb2 import AutoscalingState

    state = AutoscalingState(autoscaler_state_version=1)
    gcs = GcsClient(ray_cluster)
    gcs.report_autoscaling_state(state.SerializeToString())
    config = config_of(tiny_data, tmp_path, "growing", "scaling.gpu=true")
    require_resources(config)  # it may grow
    assert not is_full(config)
    for each in ({"CPU": 1, "GPU": 1}, {"CPU": 1}):
        gang = state.infeasible_gang_resource_requests.add()
        for _ in range(2):
            gang.requests.add().resources_bundle.update(each)
    state.autoscaler_state_version = 2
    gcs.report_autoscaling_state(state.SerializeToString())
    assert is_full(config)
    other = Growth(config_of(tiny_data, tmp_path, "waiting"))  # the nodes have room, once free
    for _ in range(3):
        other.next = 0.0
        assert other.check()
    began = time.monotonic()
    with pytest.raises(UserError, match="the autoscaler says that it can never have it"):
        train(config)
    assert time.monotonic() - began < 60


def ask_for(name: str, processors: int) -> None:
    """Ask Ray Train's coordinator as a run does; its name is what tells that a run asks."""
    import ray

    one: list[dict[str, float]] = [{"CPU": 1}]
    asked = {"resources": one * processors, "expire_after_s": 180}
    ray.get(place_coordinator().request_resources.remote(name, **asked))


def requests() -> list[str]:
    """Who has asked Ray Train's coordinator for resources."""
    import ray

    ref = place_coordinator().__ray_call__.remote(lambda actor: list(actor._ongoing_reqs))
    return list(ray.get(ref))


def workers() -> int:
    """The number of live training processes."""
    from ray.util.state import list_actors

    alive = [("class_name", "=", "RayTrainWorker"), ("state", "=", "ALIVE")]
    return len(list_actors(filters=alive))


def node_of_a_worker() -> str:
    """A node, not the head, with a living training process."""
    import ray
    from ray.util.state import list_actors

    head = next(n["NodeID"] for n in ray.nodes() if "node:__internal_head__" in n["Resources"])
    actors = list_actors(filters=[("class_name", "=", "RayTrainWorker"), ("state", "=", "ALIVE")])
    return next(str(actor.node_id) for actor in actors if actor.node_id != head)


def drain(address: str, node: str) -> None:
    """Tell Ray that a node is about to be preempted, as a pod's preStop hook does."""
    ray = str(Path(sys.executable).with_name("ray"))
    command = [ray, "drain-node", "--address", address, "--node-id", node]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
    command += ["--deadline-remaining-seconds", "90"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
