"""How a sweep uses the cluster: decided and shown before anything starts."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import Any

from pipeline.cluster import per_worker, require_resources, room
from pipeline.cluster.capacity import autoscaling_state, is_full
from pipeline.config import TrainConfig
from pipeline.config.check import worker_range
from pipeline.tune.config import SweepConfig
from pipeline.tune.space import overrides_of

# Bytes, measured: a trial's driver, its Train controller and their helpers took 640 MB.
DRIVER_MEMORY = 800_000_000
HEAD_MEMORY = 1_200_000_000  # of the drivers' node: Ray's own processes, the sweep's driver
AHEAD = 2  # trials that wait for nodes, so that an autoscaler brings more
LOOK_SECONDS = 5.0


@dataclass(frozen=True)
class Plan:
    """What runs at the same time, and what each trial takes.

    Attributes:
        trials: those that are not done. at_once: those that run at the same time at the start.
        grows: whether an autoscaler may make room for more.
        workers: least and most of a trial. worker: what each of them takes, by resource.
        driver: what a trial's driver takes, as Tune wants it. where: which nodes offer that.
    """

    trials: int
    at_once: int
    grows: bool
    workers: tuple[int, int]
    worker: dict[str, int]
    driver: dict[str, float]
    where: str

    def __str__(self) -> str:
        least, most = self.workers
        count = f"{least}" if least == most else f"{least} to {most}"
        takes = ", ".join(f"{amount} {name}" for name, amount in self.worker.items())
        more = " and more as the cluster grows" if self.grows else ""
        return (
            f"{self.trials} trials, {self.at_once} at once{more}; each has {count} "
            f"worker{'' if most == 1 else 's'} of {takes}; drivers go to {self.where}"
        )


class Planner:
    """Counts what fits on the cluster that this process has joined.

    No more trials run at the same time than can have all their workers, as each waits for its own.
    With an autoscaler a few more wait, since it brings nodes only for what waits; none once it says
    that its groups are full.

    Args:
        sweep: the sweep. trials: those that are not done.

    Raises:
        UserError: for a sweep of which a trial can never have its workers.
    """

    def __init__(self, sweep: SweepConfig, trials: int) -> None:
        self.heaviest = max(_trainings(sweep), key=_weight)
        require_resources(self.heaviest)
        self.trials = trials
        self.most = min(trials, sweep.concurrent or trials)
        self.grows = autoscaling_state() is not None
        self.looked, self.known = time.monotonic(), self._count()

    def plan(self) -> Plan:
        """The plan as the cluster is now."""
        _, memory, offered = _driver_nodes()
        return Plan(
            trials=self.trials,
            at_once=self.known,
            grows=self.grows and self.known < self.most,
            workers=worker_range(self.heaviest),
            worker=per_worker(self.heaviest),
            driver={"CPU": 0, "memory": memory, **({"trial": 1} if offered else {})},
            where="nodes that offer `trial`" if offered else "any node",
        )

    def at_once(self) -> int:
        """How many trials may run at the same time now; the cluster is asked every few seconds."""
        if time.monotonic() - self.looked >= LOOK_SECONDS:
            self.looked, self.known = time.monotonic(), self._count()
        return self.known

    def _count(self) -> int:
        places = room(self.heaviest) // worker_range(self.heaviest)[0]
        if self.grows and not is_full(self.heaviest):
            places += AHEAD
        nodes, memory, offered = _driver_nodes()
        by_memory = [int((node.get("memory", 0) - HEAD_MEMORY) // memory) for node in nodes]
        by_offer = [int(node["trial"]) if offered else self.most for node in nodes]
        drivers = sum(max(0, min(places)) for places in zip(by_memory, by_offer, strict=True))
        return max(1, min(self.most, places, drivers))


def _driver_nodes() -> tuple[list[dict[str, float]], float, bool]:
    """Where drivers go: the nodes' resources, a driver's bytes, and whether they offer `trial`.

    A driver asks for as much as it takes, or for what the largest node has, so that one fits.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    offering = [node for node in nodes if node.get("trial", 0) >= 1]
    largest = max((node.get("memory", 0.0) for node in offering or nodes), default=0.0)
    return offering or nodes, max(1.0, min(DRIVER_MEMORY, largest)), bool(offering)


def _trainings(sweep: SweepConfig) -> list[TrainConfig]:
    """The configurations of all combinations of what the space says about scaling."""
    scaling: dict[str, list[Any]] = {
        key: values
        for key, domain in sweep.space.items()
        if key.startswith("scaling.")
        for values in domain.values()
    }
    combinations = itertools.product(*scaling.values())
    points = (dict(zip(scaling, values, strict=True)) for values in combinations)
    return [sweep.training(overrides_of(point)) for point in points]


def _weight(training: TrainConfig) -> tuple[int, int]:
    least = worker_range(training)[0]
    return least * training.scaling.cpus_per_worker, least
