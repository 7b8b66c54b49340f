"""Why a RayJob's pods don't run: waiting reasons and Warning events, in Kubernetes' own words."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

from pipeline.errors import UserError

log = logging.getLogger("era")
REPEAT = 30.0  # seconds between two reports of what still holds
NORMAL = ("ContainerCreating", "PodInitializing")  # waiting reasons of a pod that is starting
EVERYDAY = ("Unhealthy",)  # events of every start: Ray answers its probes after some seconds


class Troubles:
    """Reports each trouble when it is first seen, and what still holds every `REPEAT` seconds."""

    def __init__(self, kubectl: Callable[..., str], name: str) -> None:
        self.kubectl, self.name = kubectl, name
        self.known: set[str] = set()
        self.reported = 0.0

    def look(self, rayjob: dict[str, Any]) -> None:
        """Log what keeps the job from running."""
        cluster = str(rayjob.get("status", {}).get("rayClusterName", ""))
        waiting = self._waiting(cluster) if cluster else []
        events = self._events(cluster, rayjob["metadata"].get("uid", ""))
        again = time.monotonic() - self.reported >= REPEAT
        shown = [line for line in waiting if again or line not in self.known]
        shown += [line for line in events if line not in self.known]
        for line in dict.fromkeys(shown):
            log.warning("RayJob %s: %s", self.name, line)
        if shown:
            self.reported = time.monotonic()
        self.known.update(shown)

    def _waiting(self, cluster: str) -> list[str]:
        return [
            line
            for pod in self._items("pods", "-l", f"ray.io/cluster={cluster}")
            for line in _of_pod(pod)
        ]

    def _events(self, cluster: str, uid: str) -> list[str]:
        found = []
        for event in self._items("events", "--field-selector", "type=Warning"):
            of = event.get("involvedObject", {})
            name = str(of.get("name", ""))
            if event.get("reason") in EVERYDAY or "already exists" in event.get("message", ""):
                continue
            mine = name == self.name and of.get("uid", "") == uid  # an earlier one had the name too
            if mine or (cluster and f"{name}-".startswith(f"{cluster}-")):
                found.append(_line(f"{of.get('kind', 'object')} {name}".lower(), event))
        return found

    def _items(self, kind: str, *chosen: str) -> list[dict[str, Any]]:
        """Objects of a kind; none where the question is refused, which is no trouble of the job."""
        try:
            found: list[dict[str, Any]] = json.loads(
                self.kubectl("get", kind, *chosen, "-o", "json")
            )["items"]
        except (UserError, ValueError):
            return []
        return found


def _of_pod(pod: dict[str, Any]) -> Iterator[str]:
    """Why a pod is not scheduled, and why its containers wait."""
    name, status = pod["metadata"]["name"], pod.get("status", {})
    for condition in status.get("conditions", []):
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            yield _line(f"pod {name}", condition)
    for kind in ("initContainerStatuses", "containerStatuses"):
        for container in status.get(kind, []):
            waiting = container.get("state", {}).get("waiting")
            if waiting and waiting.get("reason") not in NORMAL:
                yield _line(f"pod {name}", waiting)


def _line(what: str, said: dict[str, Any]) -> str:
    message = " ".join(str(said.get("message", "")).split())
    return f"{what}: {said.get('reason', 'waiting')}{f': {message}' if message else ''}"[:500]
