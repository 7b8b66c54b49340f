"""Checks of a Ray cluster: its nodes' versions, clocks, disks and GPUs, and its network."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from typing import Any

from pipeline.cluster import join
from pipeline.doctor.all_reduce import check_all_reduce
from pipeline.doctor.finding import FAILURE, OK, WARNING, Finding, judged
from pipeline.doctor.machine import disks, gpus, packages, wandb
from pipeline.errors import UserError

NODE_ANSWER = 60  # seconds
SKEW = 60  # seconds between nodes

Node = dict[str, Any]


def check_cluster(address: str, workers: int) -> Iterator[Finding]:
    """Join the cluster and check every node.

    Raises:
        UserError: if it does not answer, or runs other versions than this process.
    """
    join(address)
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    has = ray.cluster_resources()
    counts = f"{len(nodes)} nodes, {has.get('CPU', 0):g} CPUs, {has.get('GPU', 0):g} GPUs"
    yield Finding("ray", OK, f"{counts}, Ray {ray.__version__}")
    if len(nodes) > 1:
        cure = "start the head with --resources='{\"trial\": 64}', or they may run on spot nodes"
        has_place = has.get("trial", 0) > 0
        text = f"{has.get('trial', 0):g} places for the drivers of a sweep's trials"
        yield judged("trial", has_place, text, cure)
    yield from _versions(nodes)
    yield from _clocks(nodes)
    yield from _well(nodes)
    yield from _gpus([node for node in nodes if node["Resources"].get("GPU")])
    yield from check_all_reduce(has.get("CPU", 0), int(has.get("GPU", 0)), len(nodes), workers)


def _versions(nodes: list[Node]) -> Iterator[Finding]:
    here = version_text()
    found = on_nodes(nodes, version_text)
    other = [f"{name}: {text}" for name, text in found.items() if text != here]
    text = f"{', '.join(other)}; here {here}" if other else f"{here} on every node"
    yield judged("versions", not other, text, "use the same image everywhere", FAILURE)


def version_text() -> str:
    """The versions that must be equal on all nodes."""
    import ray

    from pipeline import __version__

    return f"Python {platform.python_version()}, Ray {ray.__version__}, ErA {__version__}"


def _clocks(nodes: list[Node]) -> Iterator[Finding]:
    began = time.time()
    found = on_nodes(nodes, _now)
    ended = time.time()
    spread = max(max(began - at, at - ended, 0.0) for at in found.values())
    text = f"{len(found)} nodes within {spread + ended - began:.1f} s of this one"
    yield judged("clocks", spread < SKEW, text, "set the nodes' clocks (NTP)")


def _now() -> float:
    return time.time()  # Ray takes no built-in function


def _well(nodes: list[Node]) -> Iterator[Finding]:
    """Run the machine's checks on each node."""
    found = on_nodes(nodes, _node_findings)
    bad = [
        Finding(f"{finding.check} on {name}", finding.state, finding.text)
        for name, findings in found.items()
        for finding in findings
        if finding.state != OK
    ]
    yield from bad
    if not bad:
        yield Finding("nodes", OK, f"packages, disks, shared memory and W&B ok on {len(found)}")


def _node_findings() -> list[Finding]:
    return [finding for check in (packages, disks, wandb) for finding in check()]


def _gpus(nodes: list[Node]) -> Iterator[Finding]:
    """Check that torch can use the GPUs that each node offers, on one GPU of each."""
    import ray

    for name, task in _start(nodes, gpu_of_a_node, gpus=1).items():
        try:
            found = ray.get(task, timeout=NODE_ANSWER)
        except ray.exceptions.GetTimeoutError:  # it ends with this process; see parallel_map
            text = "all GPUs are busy, none was checked; run again when a job has ended"
            found = [Finding("gpu", WARNING, text)]
        for one in found:
            yield Finding(f"gpu on {name}", one.state, one.text)


def gpu_of_a_node() -> list[Finding]:
    """What torch finds on a node that offers GPUs to Ray."""
    found = list(gpus())
    if found[0].text.startswith("none"):
        text = "Ray offers GPUs here, torch finds none; check the driver and torch's CUDA wheel"
        return [Finding("gpu", FAILURE, text)]
    return found


def on_nodes(nodes: list[Node], work: Callable[[], Any]) -> dict[str, Any]:
    """What `work` returns on each node."""
    import ray

    tasks = _start(nodes, work)
    try:
        return {name: ray.get(task, timeout=NODE_ANSWER) for name, task in tasks.items()}
    except ray.exceptions.GetTimeoutError:
        cure = "see `ray status` and the node's raylet.out"
        raise UserError(f"a node did not answer within {NODE_ANSWER} s; {cure}") from None


def _start(nodes: list[Node], work: Callable[[], Any], gpus: int = 0) -> dict[str, Any]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def on(node: str) -> Any:
        place = NodeAffinitySchedulingStrategy(node, soft=False)
        options = {"num_cpus": 0, "num_gpus": gpus, "scheduling_strategy": place}
        return ray.remote(work).options(**options).remote()

    return {f"{n['NodeManagerAddress']}/{n['NodeID'][:6]}": on(n["NodeID"]) for n in nodes}
