"""Reaching a Ray cluster, and refusing what it can never give."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterable

from pipeline.config import TrainConfig
from pipeline.config.check import worker_range
from pipeline.errors import UserError
from pipeline.spread import has_cluster, join_cluster


def connect(config: TrainConfig) -> None:
    """Join the cluster that RAY_ADDRESS names, or start a local one for this process."""

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    if has_cluster():
        join_cluster()
        return
    # Logical processors as the run needs them: more workers than cores is slow, not wrong.
    most = worker_range(config)[1] * config.scaling.cpus_per_worker
    start_local(max(most, os.cpu_count() or 1))


def start_local(processors: int, resources: dict[str, float] | None = None) -> None:
    """Start a Ray cluster of this process's own, which ends with it.

    Ray's own helpers look for "the" cluster of a machine, and for its dashboard at the usual port.
    They may find another run's there, hold this run's driver for dead, and take its workers away.
    Hence the known address, and a dashboard port that nobody serves.
    """
    import ray
    from ray.util import get_node_ip_address

    port, dashboard = _free_ports()
    os.environ["RAY_GCS_SERVER_PORT"] = str(port)
    os.environ["RAY_ADDRESS"] = f"{get_node_ip_address()}:{port}"
    ray.init(
        address="local",
        num_cpus=processors,
        resources=resources,
        include_dashboard=False,
        dashboard_port=dashboard,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        for probe in (one, other):
            probe.bind(("", 0))
        return one.getsockname()[1], other.getsockname()[1]


def require_resources(config: TrainConfig) -> None:
    """Refuse a request that the cluster cannot meet and has no autoscaler to grow for.

    Raises:
        UserError: at once, where Ray would wait for ever.
    """
    import ray

    least = worker_range(config)[0]
    needs = {"CPU": least * config.scaling.cpus_per_worker, "GPU": least * int(config.scaling.gpu)}
    has = ray.cluster_resources()
    for name, needed in needs.items():
        if needed > max(has.get(name, 0), _growth_limit(name)):
            raise UserError(
                f"scaling.workers={config.scaling.workers} needs {needed} {name}, the cluster has "
                f"{has.get(name, 0):g} and cannot grow to it; lower scaling.workers"
                + (" or set scaling.gpu=false" if name == "GPU" else "")
            )


def can_grow(needs: Iterable[str]) -> bool:
    """Whether the cluster's autoscaler could add any of these resources."""
    import ray

    has = ray.cluster_resources()
    return any(_growth_limit(name) > has.get(name, 0) for name in needs)


def _growth_limit(resource: str) -> float:
    """How much of a resource the cluster's autoscaler could reach; 0 without an autoscaler."""
    from ray._private.state import state  # what `ray status` itself reads; no public call has it

    return float((state.get_max_resources_from_cluster_config() or {}).get(resource, 0))
