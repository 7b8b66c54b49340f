"""What the driver hands to each worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.config import TrainConfig


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
