"""KubeRay's rules that are not in its schemas: its operator would refuse such a RayJob later."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

LONGEST_JOB, LONGEST_CLUSTER = 47, 53  # characters; KubeRay appends its own to a RayJob's name


def problems(one: dict[str, Any]) -> list[str]:
    """What KubeRay's operator would refuse about a RayJob or RayCluster, each with the reason."""
    if one["kind"] == "RayCluster":
        return [*_name(one, LONGEST_CLUSTER), *_cluster(one["spec"])]
    spec = one["spec"]
    return [*_name(one, LONGEST_JOB), *_job(spec), *_cluster(spec["rayClusterSpec"])]


def _name(one: dict[str, Any], longest: int) -> Iterator[str]:
    name = one["metadata"]["name"]
    if len(name) > longest:
        yield f"the name {name} has {len(name)} characters; {one['kind']} takes {longest} (--name)"
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield f"the name {name!r} must be small letters, digits and '-', a letter first (--name)"
    space = one["metadata"].get("namespace", "era")
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", space):
        yield f"the namespace {space!r} must be small letters, digits and '-' (--namespace)"


def _job(spec: dict[str, Any]) -> Iterator[str]:
    rules = (spec.get("deletionStrategy") or {}).get("deletionRules", [])
    shutdown = spec.get("shutdownAfterJobFinishes", False)
    if rules and shutdown:
        yield "deletionRules exclude shutdownAfterJobFinishes: both say when the cluster goes"
    if spec.get("suspend") and not shutdown:
        yield "suspend (Kueue) needs shutdownAfterJobFinishes"
    if spec.get("ttlSecondsAfterFinished") and not shutdown:
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    growing = spec["rayClusterSpec"].get("enableInTreeAutoscaling")
    if growing and any(rule["policy"] == "DeleteWorkers" for rule in rules):
        yield "DeleteWorkers excludes the autoscaler, which would bring them back"
    if growing and spec.get("suspend"):
        yield "a queued job (suspend) excludes the autoscaler: Kueue admits a gang of fixed size"
    for deadline in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(deadline, 1) <= 0:
            yield f"{deadline} must be positive"


def _cluster(spec: dict[str, Any]) -> Iterator[str]:
    growing = spec.get("enableInTreeAutoscaling", False)
    groups = [spec["headGroupSpec"], *spec.get("workerGroupSpecs", [])]
    for group in groups:
        name = group.get("groupName", "head")
        policy = group["template"]["spec"].get("restartPolicy", "Never")
        if growing and policy != "Never":
            yield f"{name}: restartPolicy {policy} excludes autoscaler v2"
        asked = {"num-cpus", "num-gpus", "memory", "resources"} & set(group["rayStartParams"])
        if asked and group.get("resources"):
            yield f"{name}: resources are given twice, in rayStartParams and beside it"
    for group in spec.get("workerGroupSpecs", []):
        least, most = group.get("minReplicas"), group.get("maxReplicas")
        if not growing and (least is None or most is None):
            yield f"{group['groupName']}: without an autoscaler minReplicas and maxReplicas are due"
        if least is not None and most is not None and not 0 <= least <= most:
            yield f"{group['groupName']}: minReplicas {least} is more than maxReplicas {most}"
    if (spec.get("authOptions") or {}).get("mode") == "token":
        version = tuple(int(part) for part in str(spec.get("rayVersion", "0")).split(".")[:2])
        if version < (2, 52):
            yield "authOptions.mode token needs rayVersion 2.52 or later"
