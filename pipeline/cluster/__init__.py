"""All that this program knows about Ray clusters: joining, starting, sizing, job servers, waiting.

Nothing here leaves a change in `os.environ`. Settings that Ray reads only from the environment are
set while a cluster starts, and restored afterwards.
"""

from pipeline.cluster.capacity import (
    Growth,
    per_worker,
    require_gpus,
    require_resources,
    room,
)
from pipeline.cluster.coordinator import place_coordinator, withdraw_requests_of_dead_runs
from pipeline.cluster.jobs import job_client, no_address
from pipeline.cluster.joining import address_of, has_cluster, join, work_in
from pipeline.cluster.local import connected, local_cluster, on_loopback
from pipeline.cluster.orphans import release_orphans
from pipeline.cluster.process_state import environment
from pipeline.cluster.waiting import Wait, wait_for

__all__ = [
    "Growth",
    "Wait",
    "address_of",
    "connected",
    "environment",
    "has_cluster",
    "job_client",
    "join",
    "local_cluster",
    "no_address",
    "on_loopback",
    "per_worker",
    "place_coordinator",
    "release_orphans",
    "require_gpus",
    "require_resources",
    "room",
    "wait_for",
    "withdraw_requests_of_dead_runs",
    "work_in",
]
