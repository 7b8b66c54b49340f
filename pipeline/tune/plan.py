"""How a sweep will use the cluster: decided and said before anything starts."""

from __future__ import annotations

import itertools
import logging
from dataclasses import dataclass
from typing import Any

from pipeline.cluster import per_worker, require_resources, room
from pipeline.config import TrainConfig
from pipeline.config.check import worker_range
from pipeline.tune.config import SweepConfig
from pipeline.tune.space import overrides_of

log = logging.getLogger("era")
LITTLE_MEMORY = 1 << 20  # bytes: what a driver asks for where no node offers `trial`


@dataclass(frozen=True)
class Plan:
    """What runs at once, and what each trial takes.

    Attributes:
        trials: of the whole sweep. at_once: running together.
        workers: least and most of a trial. worker: what each of them takes, by resource.
        driver: what a trial's driver takes, as Tune wants it. where: which nodes offer that.
    """

    trials: int
    at_once: int
    workers: tuple[int, int]
    worker: dict[str, int]
    driver: dict[str, float]
    where: str

    def __str__(self) -> str:
        least, most = self.workers
        count = f"{least}" if least == most else f"{least} to {most}"
        takes = ", ".join(f"{amount} {name}" for name, amount in self.worker.items())
        return (
            f"{self.trials} trials, {self.at_once} at once; each has {count} "
            f"worker{'' if most == 1 else 's'} of {takes}; drivers go to {self.where}"
        )


def make_plan(sweep: SweepConfig, trials: int) -> Plan:
    """Count what fits on the cluster that this process has joined.

    No more trials run at once than can have all their workers: each waits for its own, so that
    more of them would hold one another up.

    Raises:
        UserError: for a sweep of which a trial can never have its workers.
    """
    import ray

    heaviest = max(_trainings(sweep), key=_weight)
    require_resources(heaviest)
    least, most = worker_range(heaviest)
    drivers = int(ray.cluster_resources().get("trial", 0))
    at_once = min(trials, room(heaviest) // least, sweep.concurrent or trials, drivers or trials)
    return Plan(
        trials=trials,
        at_once=max(1, at_once),  # none: the cluster must grow first
        workers=(least, most),
        worker=per_worker(heaviest),
        driver={"CPU": 0, "trial": 1} if drivers else {"CPU": 0, "memory": LITTLE_MEMORY},
        where="nodes that offer `trial`" if drivers else "any node",
    )


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
