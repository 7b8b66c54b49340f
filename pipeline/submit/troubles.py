"""Why a RayJob's pods don't run: waiting reasons and Warning events, in Kubernetes' own words."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from pipeline.errors import UserError
from pipeline.submit.answers import Events, Found, Pod, Pods, Said, parsed

T = TypeVar("T", Pods, Events)
log = logging.getLogger("era")
REPEAT = 30.0  # seconds between two reports of what still holds
NORMAL = ("ContainerCreating", "PodInitializing")  # waiting reasons of a pod that is starting
# Events of every start: Ray answers its probes after some seconds, and a pod's own condition says
# what it waits for, as long as it waits.
EVERYDAY = ("Unhealthy", "FailedScheduling")


class Troubles:
    """Reports each trouble when it is first seen, and what still holds every `REPEAT` seconds."""

    def __init__(self, kubectl: Callable[..., str], name: str) -> None:
        self.kubectl, self.name = kubectl, name
        self.known: set[str] = set()
        self.reported = 0.0

    def look(self, rayjob: Found) -> None:
        """Log what keeps the job from running."""
        cluster = rayjob.status.ray_cluster_name
        waiting = self._waiting(cluster) if cluster else []
        events = self._events(cluster, rayjob.metadata.uid)
        again = time.monotonic() - self.reported >= REPEAT
        shown = [line for line in waiting if again or line not in self.known]
        shown += [line for line in events if line not in self.known]
        for line in dict.fromkeys(shown):
            log.warning("RayJob %s: %s", self.name, line)
        if shown:
            self.reported = time.monotonic()
        self.known.update(shown)

    def _waiting(self, cluster: str) -> list[str]:
        found = self._read(Pods, "pods", "-l", f"ray.io/cluster={cluster}")
        return [line for pod in (found.items if found else []) for line in _of_pod(pod)]

    def _events(self, cluster: str, uid: str) -> list[str]:
        lines = []
        found = self._read(Events, "events", "--field-selector", "type=Warning")
        for event in found.items if found else []:
            of = event.involved_object
            if event.reason in EVERYDAY or "already exists" in event.message:
                continue
            mine = of.name == self.name and of.uid == uid  # an earlier one had the name too
            if mine or (cluster and f"{of.name}-".startswith(f"{cluster}-")):
                lines.append(_line(f"{of.kind} {of.name}".lower(), event))
        return lines

    def _read(self, kind: type[T], what: str, *chosen: str) -> T | None:
        """Objects of a kind; None where the question is refused, which is no trouble of the job."""
        try:
            text = self.kubectl("get", what, *chosen, "-o", "json")
            return parsed(kind, text, f"kubectl get {what}")
        except UserError:
            return None


def _of_pod(pod: Pod) -> Iterator[str]:
    """Why a pod is not scheduled, and why its containers wait."""
    name, status = pod.metadata.name, pod.status
    for condition in status.conditions:
        if condition.type == "PodScheduled" and condition.status == "False":
            yield _line(f"pod {name}", condition)
    for container in (*status.init_container_statuses, *status.container_statuses):
        waiting = container.state.waiting
        if waiting and waiting.reason not in NORMAL:
            yield _line(f"pod {name}", waiting)


def _line(what: str, said: Said) -> str:
    message = " ".join(said.message.split())
    return f"{what}: {said.reason}{f': {message}' if message else ''}"[:500]
