"""What a run needs from a Ray cluster; what the cluster can never provide is refused."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Mapping
from typing import Any

from pipeline.cluster.waiting import wait_for
from pipeline.config import TrainConfig
from pipeline.config.check import worker_range
from pipeline.errors import UserError

log = logging.getLogger("era")
GROWTH_CHECK_SECONDS = 5.0
PODS_SECONDS = 300.0  # for a new head's pods and autoscaler


def per_worker(config: TrainConfig) -> dict[str, int]:
    """What one worker takes: CPUs, and a GPU where the run wants them."""
    wanted = {"CPU": config.scaling.cpus_per_worker, "GPU": int(config.scaling.gpu)}
    return {name: count for name, count in wanted.items() if count}


def room(config: TrainConfig) -> int:
    """How many of a run's workers fit on the cluster's current nodes, ignoring other work."""
    import ray

    needs = per_worker(config).items()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(int(min(node.get(name, 0) // count for name, count in needs)) for node in nodes)


def require_resources(config: TrainConfig) -> None:
    """Refuse what the cluster cannot provide, unless an autoscaler may add nodes.

    A KubeRay cluster whose head was replaced starts without workers: this waits for them.

    Raises:
        UserError: immediately, where Ray would wait forever.
    """
    least = worker_range(config)[0]
    if room(config) < least and os.environ.get("RAY_CLUSTER_NAME"):  # set by KubeRay
        with contextlib.suppress(TimeoutError):
            wait_for(
                lambda: room(config) >= least or autoscaling_state() is not None,
                "the cluster's workers, or its autoscaler",
                PODS_SECONDS,
            )
    fits = room(config)
    if fits >= least:
        return
    if autoscaling_state() is not None:
        log.info("the cluster has room for %d of %d workers; waiting for it to grow", fits, least)
        return
    raise UserError(_too_much(config, f"the nodes have room for {fits}, and no autoscaler"))


def require_gpus(gpus: int) -> None:
    """Refuse a cluster without as many GPUs, unless an autoscaler may add nodes that have them.

    Raises:
        UserError: where Ray would wait forever; on KubeRay after minutes, in which pods may come.
    """
    import ray

    def come() -> bool:
        return ray.cluster_resources().get("GPU", 0) >= gpus or autoscaling_state() is not None

    if not gpus or come():
        return
    if os.environ.get("RAY_CLUSTER_NAME"):  # set by KubeRay
        with contextlib.suppress(TimeoutError):
            wait_for(come, "the cluster's GPUs, or its autoscaler", PODS_SECONDS)
    if not come():
        raise UserError("--device cuda: the cluster has no node with a GPU; leave the option out")


class Growth:
    """Watches a cluster's autoscaler while workers are waited for."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.next = time.monotonic() + GROWTH_CHECK_SECONDS
        self.refusals = 0

    def check(self) -> bool:
        """Ask the autoscaler every few seconds; return whether it was asked this time.

        Raises:
            UserError: when it says twice in a row that it can never bring what the run needs.
        """
        if time.monotonic() < self.next:
            return False
        self.next = time.monotonic() + GROWTH_CHECK_SECONDS
        self.refusals = self.refusals + 1 if self._refused() else 0
        if self.refusals >= 2:
            raise UserError(_too_much(self.config, "the autoscaler says that it can never have it"))
        return True

    def lacks_room(self) -> bool:
        """Whether the nodes that are there could not hold the run, if nothing else were."""
        return room(self.config) < worker_range(self.config)[0]

    def _refused(self) -> bool:
        if not self.lacks_room():
            return False  # other work holds the nodes: the autoscaler calls that infeasible too
        return is_full(self.config)


def is_full(config: TrainConfig) -> bool:
    """Whether the autoscaler says that it has no room for one more such run, and brings none."""
    state = autoscaling_state()
    needs, least = per_worker(config), worker_range(config)[0]
    return state is not None and any(
        len(gang.requests) == least
        and all(_takes(request.resources_bundle, needs) for request in gang.requests)
        for gang in state.infeasible_gang_resource_requests
    )


def autoscaling_state() -> Any | None:
    """What the cluster's autoscaler (v2) last reported; None where there is none.

    `ray status` reads the same; no public call has it.
    """
    import ray
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply  # type: ignore[attr-defined]

    client = GcsClient(ray.get_runtime_context().gcs_address)
    reply = GetClusterStatusReply()
    reply.ParseFromString(client.get_cluster_status(timeout_s=10))
    return reply.autoscaling_state if reply.autoscaling_state.autoscaler_state_version else None


def _takes(bundle: Mapping[str, float], needs: dict[str, int]) -> bool:
    return all(bundle.get(name, 0.0) == count for name, count in needs.items())


def _too_much(config: TrainConfig, why: str) -> str:
    each = " and ".join(f"{count} {name}" for name, count in per_worker(config).items())
    cure = " or set scaling.gpu=false" if config.scaling.gpu else ""
    return (
        f"scaling.workers={config.scaling.workers.to_plain()} needs {each} for each worker: {why}; "
        f"lower scaling.workers{cure}"
    )
