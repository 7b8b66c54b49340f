"""Where a worker begins; imports no torch."""

from __future__ import annotations

import logging

from pipeline.cluster import work_in
from pipeline.train.driver_channel import ToDriver
from pipeline.train.payload import Payload


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
