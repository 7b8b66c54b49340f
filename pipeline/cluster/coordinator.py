"""Ray Train's coordinator: one actor of a cluster, to which each run says what it needs.

An elastic run gets as many workers as the coordinator has set aside for it. Ray creates it beside
the first trainer and pins it there, so that it dies with that node; and what a killed run has asked
for stays set aside for three minutes. No public call changes either.
"""

from __future__ import annotations

import logging
from typing import Any

log = logging.getLogger("era")
SILENT_SECONDS = 90.0  # a live run repeats its request every 20 s once its workers run
ANSWER_SECONDS = 20.0


def place_coordinator() -> Any:
    """Have the coordinator live on this process's node, unless the cluster has one; return it.

    None where Ray has no such thing: then it does whatever it does without.
    """
    try:
        from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
            get_or_create_autoscaling_coordinator,
        )

        return get_or_create_autoscaling_coordinator()
    except Exception as error:
        log.debug("Ray Train's coordinator cannot be placed: %s", error)
        return None


def withdraw_requests_of_dead_runs() -> None:
    """Call it before the trainer of an elastic run is created.

    Where other runs are at work, only what has not been repeated for `SILENT_SECONDS` is withdrawn.
    """
    import ray

    def withdraw(actor: Any, left: float) -> None:  # sent by value: it need not have this package
        now, requests = actor._get_current_time(), dict(actor._ongoing_reqs)
        for name, request in requests.items():
            if name.startswith("train-") and request.expiration_time - now <= left:
                actor.cancel_request(name)

    try:
        from ray.train.v2._internal.execution.scaling_policy.autoscaling_coordinator_client import (
            AUTOSCALING_REQUESTS_EXPIRE_TIME_S,
        )

        left = AUTOSCALING_REQUESTS_EXPIRE_TIME_S - (SILENT_SECONDS if _trainers() else 0.0)
        asked = place_coordinator().__ray_call__.remote(withdraw, left)
        ray.get(asked, timeout=ANSWER_SECONDS)
    except Exception as error:  # a matter of Ray's own: at worst they stay for three minutes
        log.debug("Ray Train's coordinator does not answer: %s", error)


def _trainers() -> bool:
    """Whether any run's trainer is alive on the cluster."""
    from ray._private.state import actors

    kinds = (entry for entry in actors().values() if entry["State"] != "DEAD")
    return any(entry["ActorClassName"].endswith("TrainController") for entry in kinds)
