"""Placement groups whose creator has died: they hold resources until their job ends."""

from __future__ import annotations

import logging

log = logging.getLogger("era")


def release_orphans() -> int:
    """Remove this job's placement groups whose creating actor is dead; return how many.

    Ray keeps such groups as long as the job lives. Ray Train has an actor that removes them, which
    needs the cluster's dashboard. Without either, a controller that was killed would block its
    successor forever.
    """
    import ray
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import (  # type: ignore[attr-defined]
        PlacementGroupTableData as Group,
    )
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    mine = ray.JobID.from_hex(ray.get_runtime_context().get_job_id()).binary()
    accessor = state._connect_and_get_accessor()
    released = 0
    for raw in accessor.get_placement_group_table():
        group = Group.FromString(raw)
        gone = group.state == Group.REMOVED
        by_actor = not ray.ActorID(group.creator_actor_id).is_nil()  # else by the job's own driver
        if group.creator_job_id == mine and by_actor and group.creator_actor_dead and not gone:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))
            released += 1
    return released
