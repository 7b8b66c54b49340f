"""What the driver hands to each worker, and where a worker begins; imports no torch."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from pipeline.cluster import work_in
from pipeline.config import TrainConfig
from pipeline.train.driver_channel import ToDriver


@dataclass(frozen=True)
class Payload:
    """What the driver hands to every rank.

    Attributes:
        config: the run's configuration.
        run_url: the run's folder.
        channel: the actor between driver and rank 0.
        owner: id of this attempt, which owns the run.
        folder: the driver's current folder, where relative paths begin.
        preemptible: whether Ray is to be asked for nodes that are being taken away.
        gated: whether to wait for a decision after each validation, see `driver.train`.
    """

    config: TrainConfig
    run_url: str
    channel: Any
    owner: str
    folder: str
    preemptible: bool
    gated: bool = False


def train_worker(config: dict[str, Payload]) -> None:
    """Ray Train's entry on every rank; `config` holds the `payload`."""
    import ray.train

    from pipeline.train.worker import Worker

    payload = config["payload"]
    context = ray.train.get_context()
    rank = context.get_world_rank()
    work_in(payload.folder)
    log = logging.getLogger("era")
    log.setLevel(logging.INFO)
    log.handlers[:] = [ToDriver(payload.channel, rank)]
    worker = Worker(payload, rank, context.get_world_size())
    try:
        worker.run()
    finally:
        worker.close()
