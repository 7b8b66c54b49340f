"""Nodes that come and go. Last of all tests: it takes a node of the session's cluster away."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_chain import start
from test_train import config_of

from pipeline.checkpoint import CheckpointStore
from pipeline.train import train
from pipeline.train.courier import Event


@pytest.mark.full
def test_elastic_run_takes_what_there_is(ray_cluster: str, tiny_data: Path, tmp_path: Path) -> None:
    lines: list[str] = []

    def listen(event: Event) -> None:
        lines.append(event.line)

    config = config_of(tiny_data, tmp_path, "elastic", "scaling.workers=[1, 3]")
    assert train(config, on_event=listen)["step"] == 20
    assert re.search(r"on [123] workers", "".join(lines))


@pytest.mark.full
def test_drained_node_leaves_a_checkpoint_in_time(
    ray_cluster: str, tiny_data: Path, tmp_path: Path
) -> None:
    long = "train.steps=4000", "checkpoint.every=4000", "train.global_batch=16", "train.patch=[48]"
    config = config_of(tiny_data, tmp_path, "drained", *long, "train.validate_every=0")
    process = start(config, tmp_path / "driver")
    try:
        assert process.stderr is not None
        assert any("training" in line for line in process.stderr)
        time.sleep(3)
        asked = time.monotonic()
        drain(ray_cluster, node_of_a_worker())
        store = CheckpointStore(str(tmp_path / "drained"))
        while store.latest_step() is None:
            assert time.monotonic() - asked < 60, "no checkpoint within the deadline"
            time.sleep(0.5)
        step = store.latest_step()
        assert step is not None
        assert 0 < step < 4000
        assert step % 20 == 0
    finally:
        process.kill()
        process.wait()


def node_of_a_worker() -> str:
    """The node of a living training process."""
    from ray.util.state import list_actors

    actors = list_actors(filters=[("class_name", "=", "RayTrainWorker"), ("state", "=", "ALIVE")])
    assert actors
    return str(actors[-1].node_id)


def drain(address: str, node: str) -> None:
    """Tell Ray that a node is about to be preempted, as a pod's preStop hook does."""
    ray = str(Path(sys.executable).with_name("ray"))
    command = [ray, "drain-node", "--address", address, "--node-id", node]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
    command += ["--deadline-remaining-seconds", "90"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
